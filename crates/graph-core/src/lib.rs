//! What is computed: dtypes, shapes, facts, tensors, operations, gradients.
