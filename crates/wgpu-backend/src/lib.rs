//! Runs a program's segments on wgpu.
