//! The parts of a run as JSON, and as a graph for Graphviz.

use std::fmt::Write;

use serde_json::{Value, json};

use super::Explanation;
use super::dot::{HEAD, quoted};
use super::json::us;
use super::parts::{
    ExplainedPart, ExplainedParts, ExplainedStep, PartValue, Staying, StepWork, Trips,
};

impl ExplainedParts {
    /// Each program as `form` gives it; of one that only a run knows, why.
    pub(super) fn programs_json(&self, form: impl Fn(&Explanation) -> Value) -> Vec<Value> {
        let program = |program: &super::parts::ExplainedProgram| match &program.explanation {
            Ok(explanation) => form(explanation),
            Err(unknown) => json!({ "unknown": unknown }),
        };
        self.programs.iter().map(program).collect()
    }

    pub(super) fn part_json(&self, part: &ExplainedPart) -> Value {
        let steps: Vec<Value> = part.steps.iter().map(|step| self.step_json(step)).collect();
        json!({ "predicted_us": self.predicted(part).map(us), "steps": steps })
    }

    fn step_json(&self, step: &ExplainedStep) -> Value {
        let values = |values: &[PartValue]| -> Vec<Value> {
            let value = |value: &PartValue| {
                json!({
                    "id": value.id,
                    "name": &*value.name,
                    "shape": value.shape,
                    "bytes": value.bytes,
                })
            };
            values.iter().map(value).collect()
        };
        let (program, trips) = match &step.work {
            StepWork::Program(at) => (json!(at), Value::Null),
            StepWork::Loop(_, trips, _) => (Value::Null, trips.json()),
            _ => (Value::Null, Value::Null),
        };
        let parts: Vec<Value> = step.parts().iter().map(|part| self.part_json(part)).collect();
        json!({
            "kind": step.kind(),
            "name": step.node().map(|node| &*node.name),
            "location": step.node().map(|node| &node.location),
            "program": program,
            "trips": trips,
            "stays": step.stays.as_ref().map(Staying::json),
            "parts": parts,
            "takes": values(&step.takes),
            "gives": values(&step.gives),
        })
    }

    /// A cluster for each step, one inside of the other, and a point in each, from which and to which values go.
    pub(super) fn write_dot(&self, dot: &mut String) -> std::fmt::Result {
        dot.push_str(HEAD);
        let mut drawing = Drawing { parts: self, dot, n_steps: 0, ends: Vec::new() };
        drawing.part(&self.whole)?;
        let ends = drawing.ends;
        for (value, from) in
            ends.iter().filter_map(|(value, at, gives)| gives.then_some((value, at)))
        {
            let takes = ends.iter().filter(|(other, _, gives)| !gives && other.id == value.id);
            for (_, to, _) in takes {
                writeln!(dot, "  s{from} -> s{to} [label={}];", quoted(&value.to_string()))?;
            }
        }
        writeln!(dot, "}}")
    }
}

impl Staying {
    fn json(&self) -> Value {
        let devices: Vec<&str> = self.devices.iter().map(|device| &**device).collect();
        json!({ "on": devices, "trips_a_program": self.trips, "predicted_us": us(self.each) })
    }
}

impl Trips {
    fn json(self) -> Value {
        match self {
            Self::Known(n) => json!({ "exactly": n, "at_most": n }),
            Self::AtMost(n) => json!({ "exactly": null, "at_most": n }),
            Self::Unknown => json!({ "exactly": null, "at_most": null }),
        }
    }
}

struct Drawing<'a, 'd> {
    parts: &'a ExplainedParts,
    dot: &'d mut String,
    n_steps: usize,
    /// Values, the steps that give or take them, and whether they give.
    ends: Vec<(&'a PartValue, usize, bool)>,
}

impl<'a> Drawing<'a, '_> {
    fn part(&mut self, part: &'a ExplainedPart) -> std::fmt::Result {
        for step in &part.steps {
            self.step(step)?;
        }
        Ok(())
    }

    fn step(&mut self, step: &'a ExplainedStep) -> std::fmt::Result {
        let at = self.n_steps;
        self.n_steps += 1;
        let title = match &step.work {
            StepWork::Program(program) => self.parts.program_title(*program),
            StepWork::Loop(node, trips, _) => {
                let stays = step.stays.iter().map(|staying| format!(", {staying}"));
                format!("loop {}: {trips}{}", node.name, stays.collect::<String>())
            }
            _ => format!("{} {}", step.kind(), step.node().map_or("", |node| &node.name)),
        };
        writeln!(self.dot, "  subgraph cluster_s{at} {{\n    label={};", quoted(&title))?;
        writeln!(self.dot, "    s{at} [shape=point];")?;
        if let StepWork::Program(program) = step.work
            && let Some(known) = self.parts.programs.get(program)
            && let Ok(explanation) = &known.explanation
        {
            explanation.write_dot(self.dot, &format!("p{program}_"))?;
        }
        for (k, part) in step.parts().iter().enumerate() {
            writeln!(self.dot, "  subgraph cluster_s{at}_{k} {{\n    label=\"part {k}\";")?;
            writeln!(self.dot, "    s{at}_{k} [shape=point, style=invis];")?;
            self.part(part)?;
            writeln!(self.dot, "  }}")?;
        }
        writeln!(self.dot, "  }}")?;
        self.ends.extend(step.takes.iter().map(|value| (value, at, false)));
        self.ends.extend(step.gives.iter().map(|value| (value, at, true)));
        Ok(())
    }
}
