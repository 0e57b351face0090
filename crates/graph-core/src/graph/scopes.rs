//! Scopes that are open: what they add to nodes.

use std::cell::RefCell;
use std::sync::Arc;

use smallvec::SmallVec;

use super::{BodyId, Graph, NodeId};
use crate::DeviceSpec;

/// What scopes add to nodes that are built inside of them. Scopes are entered by closures and hold for
/// the thread that entered them.
#[derive(Clone)]
pub(super) enum Scope {
    Name(Arc<str>),
    Device(Arc<str>),
    Container(Option<Arc<str>>),
    Control(SmallVec<[NodeId; 1]>),
    /// Controls of scopes around it are none of its nodes'.
    Uncontrolled,
    Colocate(NodeId),
    /// What is built inside belongs to a branch or loop. What comes before that does so once, so that controls of
    /// scopes around it are none of its nodes'.
    Body(BodyId),
    /// An operation of another graph was named: what is built inside is refused.
    Foreign(Arc<str>),
}

/// What open scopes say of a node together.
#[derive(Default)]
pub(super) struct Around {
    pub body: BodyId,
    pub controls: SmallVec<[NodeId; 1]>,
    pub device: Option<Arc<str>>,
    pub colocated: SmallVec<[NodeId; 1]>,
    pub container: Option<Arc<str>>,
}

impl Around {
    /// What these say, the innermost last.
    pub fn of(scopes: &[Scope]) -> Self {
        let mut around = Self::default();
        for scope in scopes {
            match scope {
                Scope::Name(_) | Scope::Foreign(_) => {}
                Scope::Body(id) => {
                    around.body = *id;
                    around.controls.clear();
                }
                Scope::Device(name) => around.device = Some(within(around.device.take(), name)),
                Scope::Container(name) => around.container.clone_from(name),
                Scope::Uncontrolled => around.controls.clear(),
                Scope::Control(ids) => around.controls.extend_from_slice(ids),
                Scope::Colocate(id) => {
                    // What it is with says where it runs, and devices that are named inside of this scope.
                    around.device = None;
                    around.colocated.push(*id);
                }
            }
        }
        around
    }
}

thread_local! {
    static SCOPES: RefCell<Vec<(u64, Scope)>> = const { RefCell::new(Vec::new()) };
}

/// Leaves a scope when dropped, also by a panic in a closure.
pub(crate) struct Entered;

impl Drop for Entered {
    fn drop(&mut self) {
        SCOPES.with_borrow_mut(Vec::pop);
    }
}

impl Graph {
    pub(super) fn enter<R>(&self, scope: Scope, build: impl FnOnce() -> R) -> R {
        let _entered = self.entered(scope);
        build()
    }

    fn entered(&self, scope: Scope) -> Entered {
        SCOPES.with_borrow_mut(|scopes| scopes.push((self.id(), scope)));
        Entered
    }

    /// Until this is dropped, what is built runs after nothing that a scope around it names. In place of a closure, so
    /// that the caller's line is known.
    pub(crate) fn uncontrolled(&self) -> Entered {
        self.entered(Scope::Uncontrolled)
    }

    pub(super) fn scopes(&self) -> Vec<Scope> {
        SCOPES.with_borrow(|scopes| {
            scopes.iter().filter(|(id, _)| *id == self.id()).map(|(_, s)| s.clone()).collect()
        })
    }

    pub(super) fn name_prefix(&self) -> String {
        let name = self.scopes().into_iter().rev().find_map(|s| match s {
            Scope::Name(name) => Some(format!("{name}/")),
            _ => None,
        });
        name.unwrap_or_default()
    }
}

/// The device that a scope asks for within another. A name that is malformed stays as it is, for whoever reads it.
fn within(outer: Option<Arc<str>>, inner: &Arc<str>) -> Arc<str> {
    let Some(outer) = outer else { return inner.clone() };
    match (outer.parse::<DeviceSpec>(), inner.parse::<DeviceSpec>()) {
        (Ok(of_outer), Ok(of_inner)) => of_outer.merge(&of_inner).to_string().into(),
        (Err(_), _) => outer,
        (Ok(_), Err(_)) => inner.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an inner scope names decides, and the rest stays; another type drops the index. A malformed name stays, for
    /// whoever places the node to refuse.
    #[test]
    fn device_scopes_merge() {
        let g = Graph::new();
        let asked = |names: &[&str]| {
            let build = || g.constant(1.0f32).node().device.clone();
            let device = match *names {
                [a] => g.device(a, build),
                [a, b] => g.device(a, || g.device(b, build)),
                [a, b, c] => g.device(a, || g.device(b, || g.device(c, build))),
                _ => build(),
            };
            device.map_or_else(String::new, |device| device.to_string())
        };
        assert_eq!(asked(&[]), "");
        assert_eq!(asked(&["gpu:1"]), "gpu:1");
        assert_eq!(asked(&["GPU:1", "/task:0"]), "/task:0/device:GPU:1");
        assert_eq!(asked(&["/job:worker", "GPU:0"]), "/job:worker/device:GPU:0");
        assert_eq!(asked(&["GPU:1", "CPU"]), "/device:CPU");
        assert_eq!(asked(&["/job:a/task:2", "/task:3", "CPU:0"]), "/job:a/task:3/device:CPU:0");
        assert_eq!(asked(&["GPU:1", ""]), "/device:GPU:1");
        assert_eq!(asked(&["GPU:1", "no such"]), "no such");
        assert_eq!(asked(&["no such", "GPU:1"]), "no such");
    }
}
