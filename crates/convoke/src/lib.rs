//! Session engine for tensor graphs on any GPU and on the CPU.
