//! Every file, assembled with its default holes, is valid, and is the file itself with something after it.

use naga::valid::{Capabilities, ValidationFlags, Validator};

use crate::{Access, KERNELS, Kernel, LIBRARY, ParamValue, declared_name};

fn with_defaults(kernel: &mut Kernel) -> String {
    let mut names = vec![kernel.name()];
    let mut at = 0;
    while let Some(name) = names.get(at) {
        let source = KERNELS.iter().chain(LIBRARY).find(|s| s.name == *name).unwrap();
        for (name, ty) in source.params() {
            assert_eq!(ty, "u32");
            kernel.size(name, 1);
        }
        names.extend(source.imports());
        at += 1;
    }
    kernel.assemble()
}

fn validate(text: &str) -> Result<(), String> {
    let module = naga::front::wgsl::parse_str(text).map_err(|e| e.emit_to_string(text))?;
    Validator::new(ValidationFlags::all(), Capabilities::SUBGROUP)
        .validate(&module)
        .map(|_| ())
        .map_err(|e| e.emit_to_string(text))
}

#[test]
fn every_kernel_is_valid_with_its_defaults() {
    for source in KERNELS {
        let text = with_defaults(&mut Kernel::new(*source));
        assert!(text.starts_with(source.text), "{}", source.name);
        validate(&text).unwrap_or_else(|e| panic!("{}: {e}\n{text}", source.name));
    }
}

#[test]
fn every_import_is_valid_with_its_defaults() {
    for source in LIBRARY {
        let mut kernel = Kernel::new(KERNELS[1]);
        kernel.import(source.name);
        kernel.bind("status", "atomic<u32>", Access::ReadWrite);
        for (name, _) in source.params() {
            kernel.size(name, 1);
        }
        let text = with_defaults(&mut kernel);
        assert!(text.contains(source.text), "{}", source.name);
        validate(&text).unwrap_or_else(|e| panic!("{}: {e}\n{text}", source.name));
    }
}

#[test]
fn headers_name_what_exists() {
    for source in KERNELS.iter().chain(LIBRARY) {
        assert!(source.text.starts_with(&format!("// {}: ", source.name)), "{}", source.name);
        assert!(source.text.lines().count() <= 200, "{} has too many lines", source.name);
        for import in source.imports() {
            assert!(LIBRARY.iter().any(|s| s.name == import), "{} imports {import}", source.name);
        }
        for (name, _) in source.params() {
            assert!(source.text.contains(&format!("p.{name}")), "{}: {name}", source.name);
        }
    }
}

#[test]
fn what_is_declared_replaces_the_default() {
    let mut kernel = Kernel::new(KERNELS[1]);
    kernel.declare("const WG = 64u;").size("items", 7).param("c", ParamValue::F32(f32::INFINITY));
    let text = kernel.assemble();
    assert_eq!(text.matches("\nconst WG").count(), 1);
    assert!(text.contains("\nconst WG = 64u;"));
    assert!(text.contains("struct Params { items: u32, c: f32, }"));
    assert_eq!(kernel.param_bytes(), [7, 0, 0, 0, 0, 0, 0x80, 0x7f]);
}

#[test]
fn names_of_declarations() {
    assert_eq!(declared_name("fn load_0(i: u32) -> f32 { return x[i]; }"), "load_0");
    assert_eq!(declared_name("alias T = f32;"), "T");
    assert_eq!(declared_name("const WG = 64u;"), "WG");
    assert_eq!(declared_name(""), "");
}
