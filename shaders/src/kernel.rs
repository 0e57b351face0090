//! A kernel to be run: a file, what is declared for it, what it binds, and the values of its params.

use crate::{LIBRARY, Source, declared_name};

/// How a kernel uses a storage buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// It is only read.
    Read,
    /// It is written.
    ReadWrite,
}

/// A storage buffer of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The variable's name.
    pub name: String,
    /// The type of an element: `f32`, `atomic<u32>`.
    pub element: &'static str,
    /// How it is used.
    pub access: Access,
}

/// The value of a param.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum ParamValue {
    U32(u32),
    I32(i32),
    F32(f32),
}

impl ParamValue {
    /// Its type in WGSL.
    pub fn wgsl(self) -> &'static str {
        match self {
            Self::U32(_) => "u32",
            Self::I32(_) => "i32",
            Self::F32(_) => "f32",
        }
    }

    /// Its four bytes.
    pub fn bytes(self) -> [u8; 4] {
        match self {
            Self::U32(x) => x.to_ne_bytes(),
            Self::I32(x) => x.to_ne_bytes(),
            Self::F32(x) => x.to_ne_bytes(),
        }
    }
}

/// A field of `Params`.
#[derive(Debug, Clone, PartialEq)]
pub struct Param {
    /// Its name.
    pub name: String,
    /// Its value, which is no part of the text.
    pub value: ParamValue,
}

/// A file with all that makes it a kernel. See the crate's documentation.
#[derive(Debug, Clone, PartialEq)]
pub struct Kernel {
    file: Source,
    declarations: Vec<String>,
    imports: Vec<&'static str>,
    params: Vec<Param>,
    bindings: Vec<Binding>,
    f16: bool,
}

impl Kernel {
    /// The kernel of `file`, with all of its holes at their defaults.
    pub fn new(file: Source) -> Self {
        Self {
            file,
            declarations: Vec::new(),
            imports: Vec::new(),
            params: Vec::new(),
            bindings: Vec::new(),
            f16: false,
        }
    }

    /// Appends declarations of module scope, each of a name that isn't declared yet; the first line says it.
    pub fn declare(&mut self, declaration: impl Into<String>) -> &mut Self {
        self.declarations.push(declaration.into());
        self
    }

    /// As [`Self::declare`], unless the name is declared.
    pub fn declare_once(&mut self, declaration: impl Into<String>) -> &mut Self {
        let declaration = declaration.into();
        if !self.declares(declared_name(&declaration)) {
            self.declarations.push(declaration);
        }
        self
    }

    fn declares(&self, name: &str) -> bool {
        self.declarations.iter().any(|d| declared_name(d) == name)
    }

    /// Appends a file of `lib/`, and what that imports.
    pub fn import(&mut self, name: &'static str) -> &mut Self {
        self.imports.push(name);
        self
    }

    /// Adds a field to `Params`.
    pub fn param(&mut self, name: impl Into<String>, value: ParamValue) -> &mut Self {
        self.params.push(Param { name: name.into(), value });
        self
    }

    /// As [`Self::param`], of a u32.
    pub fn size(&mut self, name: impl Into<String>, value: u32) -> &mut Self {
        self.param(name, ParamValue::U32(value))
    }

    /// Adds a storage buffer and gives its binding number.
    pub fn bind(&mut self, name: &str, element: &'static str, access: Access) -> usize {
        self.bindings.push(Binding { name: name.to_owned(), element, access });
        self.bindings.len() - 1
    }

    /// Makes a buffer one that is written.
    pub fn make_writable(&mut self, binding: usize) -> &mut Self {
        if let Some(binding) = self.bindings.get_mut(binding) {
            binding.access = Access::ReadWrite;
        }
        self
    }

    /// Gives the variable of a buffer another name.
    pub fn rename(&mut self, binding: usize, name: &str) -> &mut Self {
        if let Some(binding) = self.bindings.get_mut(binding) {
            name.clone_into(&mut binding.name);
        }
        self
    }

    /// Enables 16-bit floats.
    pub fn enable_f16(&mut self) -> &mut Self {
        self.f16 = true;
        self
    }

    /// The file's name.
    pub fn name(&self) -> &'static str {
        self.file.name
    }

    /// The storage buffers, from binding 0 on. The uniform buffer of the params follows them.
    pub fn bindings(&self) -> &[Binding] {
        &self.bindings
    }

    /// The params.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// The bytes of `Params`.
    pub fn param_bytes(&self) -> Vec<u8> {
        self.params.iter().flat_map(|param| param.value.bytes()).collect()
    }

    /// The file and all that it needs, imports once each.
    fn sources(&self) -> Vec<Source> {
        let mut sources = vec![self.file];
        let mut wanted: Vec<&str> = self.imports.clone();
        let mut at = 0;
        while at < sources.len() {
            wanted.extend(sources[at].imports());
            for name in wanted.drain(..) {
                let source = LIBRARY.iter().find(|source| source.name == name);
                sources.extend(source.filter(|s| !sources.contains(s)).copied());
            }
            at += 1;
        }
        sources
    }

    /// The whole shader; its entry point is `main`.
    pub fn assemble(&self) -> String {
        let sources = self.sources();
        let mut text = String::with_capacity(8192);
        if self.f16 {
            text.push_str("enable f16; ");
        }
        text.push_str(self.file.text);
        text.push('\n');
        for hole in self.open_holes(&sources) {
            text.push_str(hole);
            text.push('\n');
        }
        for declaration in &self.declarations {
            text.push_str(declaration);
            text.push('\n');
        }
        self.append_interface(&mut text);
        for source in &sources[1..] {
            text.push_str(source.text);
        }
        text
    }

    /// Defaults of the holes that nobody fills: no declaration, no other source.
    fn open_holes(&self, sources: &[Source]) -> Vec<&'static str> {
        let mut open: Vec<&'static str> = Vec::new();
        for hole in sources.iter().flat_map(Source::holes) {
            let name = declared_name(hole);
            let filled = self.declares(name)
                || sources.iter().any(|source| declares(source.text, name))
                || open.iter().any(|other| declared_name(other) == name);
            if !filled {
                open.push(hole);
            }
        }
        open
    }

    fn append_interface(&self, text: &mut String) {
        text.push_str("struct Params {");
        for param in &self.params {
            text.push_str(&format!(" {}: {},", param.name, param.value.wgsl()));
        }
        text.push_str(" }\n");
        for (i, Binding { name, element, access }) in self.bindings.iter().enumerate() {
            let access = match access {
                Access::Read => "read",
                Access::ReadWrite => "read_write",
            };
            text.push_str(&format!(
                "@group(0) @binding({i}) var<storage, {access}> {name}: array<{element}>;\n"
            ));
        }
        let i = self.bindings.len();
        text.push_str(&format!("@group(0) @binding({i}) var<uniform> p: Params;\n"));
    }
}

/// Whether a WGSL text has a function of this name.
fn declares(text: &str, name: &str) -> bool {
    text.lines()
        .filter(|line| line.starts_with("fn "))
        .any(|declaration| declared_name(declaration) == name)
}
