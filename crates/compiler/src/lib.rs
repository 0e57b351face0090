//! From graph to plan to program: prune, simplify, group, schedule, memory.
