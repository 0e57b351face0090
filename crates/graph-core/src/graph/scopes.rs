//! Scopes that are open: what they add to nodes.

use std::cell::RefCell;
use std::sync::Arc;

use smallvec::SmallVec;

use super::{BodyId, Graph, NodeId};

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
