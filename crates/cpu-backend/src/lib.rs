//! Runs a program's segments on the CPU.
