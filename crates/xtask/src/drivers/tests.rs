//! What the tools print, and the stamp.

use super::*;

#[test]
fn missing_libraries_are_read_from_ldd() {
    let text = "\tlinux-vdso.so.1 (0x00007ff6cc01f000)\n\
                \tlibz3.so.4 => not found\n\
                \tlibLLVM-15.so.1 => not found\n\
                \tlibz3.so.4 => not found\n\
                \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007ff6cb73e000)\n";
    let names = vec!["libLLVM-15.so.1".to_owned(), "libz3.so.4".to_owned()];
    assert_eq!(system::parse_ldd(text), Ok(names));
    assert_eq!(system::parse_ldd("\tstatically linked\n"), Ok(vec![]));
    let old = "x.so: /lib/libc.so.6: version `GLIBC_2.38' not found (required by x.so)";
    assert_eq!(system::parse_ldd(old), Err(old.to_owned()));
}

#[test]
fn the_linkers_list_is_read() {
    let list = "2 libs found in cache `/etc/ld.so.cache'\n\
                \tlibvulkan.so.1 (libc6) => /lib/i386-linux-gnu/libvulkan.so.1\n\
                \tlibvulkan.so.1 (libc6,x86-64) => /lib/x86_64-linux-gnu/libvulkan.so.1\n";
    let path = Some(PathBuf::from("/lib/x86_64-linux-gnu/libvulkan.so.1"));
    if cfg!(target_pointer_width = "64") {
        assert_eq!(system::parse_ldconfig(list, "libvulkan.so.1"), path);
    }
    assert_eq!(system::parse_ldconfig(list, "libvulkan.so"), None);
}

#[test]
fn packages_are_read_from_a_simulation() {
    let text = "Reading package lists...\n\
                Inst libz3-4 (4.8.12-3.1 Debian:12.15/oldstable [amd64])\n\
                Inst libexpat1 [2.5.0-1] (2.5.0-1+deb12u2 Debian:12.15/oldstable [amd64]) []\n\
                Conf libz3-4 (4.8.12-3.1 Debian:12.15/oldstable [amd64])\n";
    assert_eq!(apt::parse_simulation(text), ["libz3-4", "libexpat1"]);
}

#[test]
fn hooks_of_the_system_are_left_out() {
    let settings = "Acquire::http::Proxy \"http://proxy:3128\";\n\
                    APT::Update::Post-Invoke:: \"rm -f /var/cache/apt/archives/*.deb\";\n";
    let config = apt::config(settings, Path::new("/x"));
    assert!(config.starts_with("Acquire::http::Proxy \"http://proxy:3128\";\n//"));
    assert!(!config.contains("Post-Invoke"));
    assert!(config.contains("Dir::State \"/x/state\";\n"));
}

#[test]
fn a_stamp_is_read_as_it_was_written() {
    let found = vec![
        Found::System("/lib/libvulkan.so.1".into()),
        Found::Unpacked("mesa-vulkan-drivers 22.3.6".into(), "/x/lib/libvulkan_lvp.so".into()),
        Found::Missing("apt is not there".into()),
        Found::System("/usr/bin/spirv-val".into()),
        Found::Unpacked("chromium 156.0".into(), "/x/browser/chromium".into()),
    ];
    let text = stamp::print(&found);
    assert_eq!(stamp::parse(&text), Some(found));
    for bad in ["", "convoke drivers 1\n", &text[..60], &text.replace("lavapipe", "other")] {
        assert_eq!(stamp::parse(bad), None, "{bad:?}");
    }
}

#[test]
fn a_driver_is_described_by_its_path() {
    assert_eq!(
        icd_text(Path::new("/a \"b\"/x.so")),
        "{\n  \"file_format_version\": \"1.0.0\",\n  \"ICD\": { \"library_path\": \
         \"/a \\\"b\\\"/x.so\", \"api_version\": \"1.3.0\" }\n}\n"
    );
}
