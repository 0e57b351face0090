//! Programs as text, for dumps, reports and golden files.

use std::fmt;

use convoke_graph_core::{ConvGeometry, Elementwise, Op, PoolGeometry};

use crate::{
    Arg, Check, Fold, Fused, Group, Kernel, Operand, Program, Rows, Segment, Source, ValueId,
};

impl fmt::Display for ValueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.value)?;
        if !self.layout.is_packed() || self.layout.offset() != 0 {
            write!(f, "{}", self.layout.shape())?;
            write!(f, "+{}*{:?}", self.layout.offset(), self.layout.strides())?;
        }
        Ok(())
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elementwise(fused) => write!(f, "{fused}"),
            Self::Reduce(r) => write!(f, "{:?} after {} axes", r.kind, r.n_outer),
            Self::Rows(rows) => write!(f, "{rows}"),
            Self::Matmul => f.write_str("matmul"),
            Self::Pad { before } => write!(f, "pad {before:?}"),
            Self::Concat { axis } => write!(f, "concat {axis}"),
            Self::Gather { axis } => write!(f, "gather {axis}"),
            Self::ScatterAdd { axis } => write!(f, "scatter_add {axis}"),
            Self::Conv2d(g) => write_conv(f, "conv2d", g),
            Self::Conv2dInput(g) => write_conv(f, "conv2d_input", g),
            Self::Conv2dFilter(g) => write_conv(f, "conv2d_filter", g),
            Self::Pool { kind, geometry } => {
                let PoolGeometry { window, stride, pad_before, layout, .. } = geometry;
                write!(
                    f,
                    "pool {kind:?} {window:?} stride {stride:?} pad {pad_before:?} {layout:?}"
                )
            }
            Self::Text(op) => f.write_str(op.name()),
            Self::Random(r) => write!(f, "random {:?}", r.distribution),
            Self::Custom(kernel) => write!(f, "{kernel:?}"),
        }
    }
}

fn write_conv(f: &mut fmt::Formatter<'_>, name: &str, g: &ConvGeometry) -> fmt::Result {
    let ConvGeometry { groups, window, stride, dilation, pad_before, layout, .. } = g;
    write!(f, "{name} {window:?} stride {stride:?} dilation {dilation:?} groups {groups} ")?;
    write!(f, "pad {pad_before:?} {layout:?}")
}

/// `t0 = add(i0, i1); store t0`.
impl fmt::Display for Fused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_fused(f, self, self.input_dtypes.len(), &[])
    }
}

/// `rows after 1 axes: f0 = Max(i0); t0 = sub(i0, f0); store t0`.
impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.seen.is_some() { "columns" } else { "rows" };
        write!(f, "{what} after {} axes: ", self.n_outer)?;
        write_fused(f, &self.fused, self.n_inputs(), &self.folds)?;
        let arg = |arg: Arg| match arg {
            Arg::Input(i) => format!("f{}", (i as usize).saturating_sub(self.n_inputs())),
            Arg::Constant(i) => format!("{}", self.fused.constants[i as usize]),
            Arg::Instr(i) => format!("t{i}"),
        };
        let totals: Vec<String> = self
            .totals
            .iter()
            .map(|total| format!("{:?} of rows({})", total.kind, arg(total.arg)))
            .collect();
        let between = if totals.is_empty() || self.fused.stores.is_empty() { "" } else { "; " };
        write!(f, "{between}{}", totals.join("; "))
    }
}

/// Each fold is written where it can be computed.
fn write_fused(
    f: &mut fmt::Formatter<'_>,
    fused: &Fused,
    n_inputs: usize,
    folds: &[Fold],
) -> fmt::Result {
    let arg = |a: &Arg| match a {
        Arg::Input(i) if *i as usize >= n_inputs => format!("f{}", *i as usize - n_inputs),
        Arg::Input(i) => format!("i{i}"),
        Arg::Constant(i) => format!("{}", fused.constants[*i as usize]),
        Arg::Instr(i) => format!("t{i}"),
    };
    let mut written = 0;
    let mut write_folds = |f: &mut fmt::Formatter<'_>, n_instrs: usize| {
        let is_ready = |fold: &Fold| !matches!(fold.arg, Arg::Instr(i) if i as usize >= n_instrs);
        while let Some(fold) = folds.get(written).filter(|fold| is_ready(fold)) {
            write!(f, "f{written} = {:?}({}); ", fold.kind, arg(&fold.arg))?;
            written += 1;
        }
        Ok(())
    };
    write_folds(f, 0)?;
    for (i, instr) in fused.instrs.iter().enumerate() {
        let args: Vec<String> = instr.args.iter().map(arg).collect();
        let name = match instr.op {
            Elementwise::Row(row) => row.name.to_owned(),
            Elementwise::Cast => format!("cast {}", instr.dtype),
            other => format!("{other:?}").to_lowercase(),
        };
        write!(f, "t{i} = {name}({}); ", args.join(", "))?;
        write_folds(f, i + 1)?;
    }
    if let Some(Check { arg: index, below, .. }) = &fused.check {
        write!(f, "check {} < {below}; ", arg(index))?;
    }
    let stores: Vec<String> = fused.stores.iter().map(arg).collect();
    if stores.is_empty() {
        return Ok(());
    }
    write!(f, "store {}", stores.join(", "))
}

impl Group {
    /// The kernel with its heads and tail, in the order in which they work.
    pub fn work_text(&self) -> String {
        let mut text = String::new();
        for head in &self.heads {
            text.push_str(&format!("operand {}: {}; ", head.operand, head.fused));
        }
        text.push_str(&self.kernel.to_string());
        if let Some(tail) = &self.tail {
            text.push_str(&format!("; {}", tail.fused));
        }
        text
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, value) in self.values.iter().enumerate() {
            let source = match &value.source {
                Source::Computed => continue,
                Source::Feed(output) => format!("feed %{}", output.node.0),
                Source::Constant(tensor) => format!("constant {tensor}"),
                Source::Variable(node) => format!("variable %{}", node.0),
                Source::Initialized(node) => format!("initialized %{}", node.0),
                Source::Draws(node, 0) => format!("draws %{}", node.0),
                Source::Draws(node, own) => format!("draws %{} + {own}", node.0),
            };
            writeln!(f, "v{i} {}{} = {source}", value.dtype, value.shape)?;
        }
        for segment in &self.segments {
            write!(f, "{segment}")?;
            for &group in &segment.groups {
                let group = &self.groups[group as usize];
                let list = |ids: Vec<String>| ids.join(", ");
                let outputs = group
                    .outputs
                    .iter()
                    .map(|&id| format!("{id} {}{}", self.value(id).dtype, self.value(id).shape));
                let inputs = group.inputs.iter().map(ToString::to_string).collect();
                let outputs = list(outputs.collect());
                writeln!(f, "  {outputs} = [{}] of {}", group.work_text(), list(inputs))?;
            }
            for commit in &segment.commits {
                writeln!(f, "  commit %{} = {}", commit.variable.0, commit.value)?;
            }
            for donation in &segment.donations {
                writeln!(f, "  leave {} where {} was", donation.value, donation.feed)?;
            }
            if !segment.downloads.is_empty() {
                let ids: Vec<String> = segment.downloads.iter().map(ToString::to_string).collect();
                writeln!(f, "  download {}", ids.join(", "))?;
            }
            if !segment.residents.is_empty() {
                let ids: Vec<String> = segment.residents.iter().map(ToString::to_string).collect();
                writeln!(f, "  leave {}", ids.join(", "))?;
            }
        }
        let fetches: Vec<String> = self.fetches.iter().map(ToString::to_string).collect();
        writeln!(f, "fetch {}", fetches.join(", "))
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "segment on device {}", self.device.0)?;
        if !self.uploads.is_empty() {
            let ids: Vec<String> = self.uploads.iter().map(ToString::to_string).collect();
            writeln!(f, "  upload {}", ids.join(", "))?;
        }
        for (id, from) in &self.carried {
            writeln!(f, "  take {id} from segment {from}")?;
        }
        for id in &self.borrowed {
            writeln!(f, "  take {id} from where it lies")?;
        }
        Ok(())
    }
}
