//! Kernels as WGSL files, and how they are assembled.
