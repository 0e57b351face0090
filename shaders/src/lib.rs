//! Kernels as WGSL files, and how they are assembled.
//!
//! A kernel's file is plain WGSL with names that are declared elsewhere. Its header lists them:
//!
//! - `// hole DECLARATION`: a function, alias or constant that the user of the kernel declares; the text is
//!   the default.
//! - `// param NAME: TYPE`: a field of `Params` that the file itself reads as `p.NAME`.
//! - `// import NAME, NAME`: files of `lib/`, which have such headers too.
//!
//! [`Kernel::assemble`] leaves the file as it is and appends what is missing, so that messages of naga and of
//! drivers keep the file's own line numbers. Values never become text: they are fields of `Params`.
//!
//! Read next: `elementwise.wgsl`, then `matmul.wgsl`. Invariant: a kernel's text is a function of its file,
//! declarations, bindings and the names and types of its params, so that it is the key of its pipeline.
#![forbid(unsafe_code)]

mod kernel;
#[cfg(test)]
mod tests;

pub use kernel::{Access, Binding, Kernel, Param, ParamValue};

/// A WGSL file of this package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The file's name without its extension.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

macro_rules! sources {
    ($dir:literal: $($name:literal),* $(,)?) => {
        &[$(Source { name: $name, text: include_str!(concat!("../", $dir, $name, ".wgsl")) }),*]
    };
}

/// The kernels, one file each.
pub static KERNELS: &[Source] = sources! { "":
    "concat",
    "elementwise",
    "gather",
    "matmul",
    "matmul_deep",
    "matmul_subgroups",
    "matmul_wide",
    "pad",
    "pool",
    "pool_grad",
    "random",
    "reduce",
    "reduce_lanes",
    "reduce_subgroups",
    "rows",
    "rows_lanes",
    "rows_subgroups",
    "scatter_add",
};

/// What kernels import.
pub static LIBRARY: &[Source] = sources! { "lib/":
    "cover",
    "emit",
    "emit_bool",
    "math",
    "philox",
    "place",
    "status",
    "tiles",
    "window",
};

impl Source {
    /// The rest of each header line that begins with `key`.
    fn header(&self, key: &'static str) -> impl Iterator<Item = &'static str> {
        let lines = self.text.lines().take_while(|line| line.starts_with("//"));
        lines.filter_map(move |line| line.strip_prefix("// ")?.strip_prefix(key)?.strip_prefix(' '))
    }

    /// The default declarations of its holes.
    pub fn holes(&self) -> impl Iterator<Item = &'static str> {
        self.header("hole")
    }

    /// The params that it reads: names and types.
    pub fn params(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.header("param").filter_map(|line| line.split_once(": "))
    }

    /// The names of the files that it imports.
    pub fn imports(&self) -> impl Iterator<Item = &'static str> {
        self.header("import").flat_map(|line| line.split(", "))
    }
}

/// The name that a declaration declares: `f` of `fn f(x: u32) -> u32 { .. }`.
pub fn declared_name(declaration: &str) -> &str {
    let rest = declaration.split_once(' ').map_or("", |(_, rest)| rest);
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
    &rest[..end]
}
