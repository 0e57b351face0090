//! What items that share a device ask for together, and how two such requests become one.
//!
//! A request has three ranks. A device that the runtime assigned stands above all. Requests of resources
//! bind: users of a resource follow it. Other requests are wishes.

use std::fmt;

use crate::problem::{Item, Problem};
use crate::{DeviceSpec, FieldConflict};

/// What a class of items asks for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    /// The device that a member is assigned to.
    assigned: Option<usize>,
    /// What resources ask for.
    binding: DeviceSpec,
    /// What all else asks for. It contradicts neither of the above.
    wished: DeviceSpec,
    /// Whether wishes of colocated items were in conflict; the field then stays open, whoever asks for it
    /// later, so that the order of the wishes does not matter.
    open_type: bool,
    open_index: bool,
}

/// Why items can't share a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Clash {
    /// The runtime has assigned them to these devices.
    Assigned(DeviceSpec, DeviceSpec),
    /// The first is assigned, a resource asks for the second.
    AssignedAndBinding(DeviceSpec, DeviceSpec),
    /// Resources ask for these.
    Bindings(DeviceSpec, DeviceSpec),
    /// They ask for these.
    Requests(DeviceSpec, DeviceSpec),
    /// No device runs all that would share one.
    NoKernel,
    /// None of the devices that run all of it is as asked.
    NoDevice,
}

/// A request of two classes, and whose wishes were overruled by the other.
pub(crate) struct Connected {
    pub(crate) request: Request,
    pub(crate) source_overruled: bool,
    pub(crate) user_overruled: bool,
}

impl Request {
    /// What one item asks for. `is_user` says whether it uses what another holds.
    pub(crate) fn of(item: &Item, is_user: bool) -> Self {
        let asked = item.requested.clone().unwrap_or_default();
        match item.assigned {
            Some(_) => Self { assigned: item.assigned, ..Self::default() },
            None if item.is_resource && !is_user => Self { binding: asked, ..Self::default() },
            None => Self { wished: asked, ..Self::default() },
        }
    }

    /// The device that a member is assigned to.
    pub(crate) fn assigned(&self) -> Option<usize> {
        self.assigned
    }

    /// What all ask for.
    pub(crate) fn merged(&self, problem: &Problem) -> DeviceSpec {
        both(&self.wished, self.fixed(problem))
    }

    /// What no wish overrules.
    fn fixed(&self, problem: &Problem) -> DeviceSpec {
        self.binding.merge(&self.home(problem))
    }

    /// The name of the assigned device; open where there is none.
    fn home(&self, problem: &Problem) -> DeviceSpec {
        self.assigned.map(|d| problem.devices[d].name.clone()).unwrap_or_default()
    }

    /// The request of a source and a user of what it holds. What binds overrules wishes; where only wishes
    /// are in conflict, the source's overrule all of the user's.
    pub(crate) fn connect(
        problem: &Problem,
        source: &Self,
        user: &Self,
    ) -> Result<Connected, Clash> {
        let mut request = Self::fixed_together(problem, source, user, problem.soft_placement)?;
        let fixed = request.fixed(problem);
        let compatible = |a: &DeviceSpec, b: &DeviceSpec| a.combine(b).is_ok();
        let source_overruled = !compatible(&source.wished, &fixed);
        if !source_overruled {
            request.wished = source.wished.clone();
        }
        let user_overruled =
            !compatible(&user.wished, &fixed) || !compatible(&user.wished, &request.wished);
        if !user_overruled {
            request.wished = both(&user.wished, request.wished);
        }
        Ok(Connected { request, source_overruled, user_overruled })
    }

    /// The request of two colocated classes. With soft placement, types and indices in conflict are left
    /// open.
    pub(crate) fn colocate(problem: &Problem, a: &Self, b: &Self) -> Result<Self, Clash> {
        let mut request = Self::fixed_together(problem, a, b, false)?;
        request.open_type = a.open_type || b.open_type;
        request.open_index = a.open_index || b.open_index;
        let (one, other) = (a.merged(problem), b.merged(problem));
        match one.combine(&other) {
            Ok(_) => {}
            Err(FieldConflict::Type) if problem.soft_placement => request.open_type = true,
            Err(FieldConflict::Index) if problem.soft_placement => request.open_index = true,
            Err(_) => return Err(Clash::Requests(one, other)),
        }
        request.wished = both(&request.opened(&a.wished), request.opened(&b.wished));
        Ok(request)
    }

    /// A wish without the fields that stay open.
    fn opened(&self, wished: &DeviceSpec) -> DeviceSpec {
        let mut wished = wished.clone();
        if self.open_type {
            wished.device_type = None;
        }
        if self.open_type || self.open_index {
            wished.index = None;
        }
        wished
    }

    /// What is fixed of two classes. If `moves`, a resource that asks for another device than the one
    /// assigned gives way.
    fn fixed_together(problem: &Problem, a: &Self, b: &Self, moves: bool) -> Result<Self, Clash> {
        let assigned = match (a.assigned, b.assigned) {
            (Some(x), Some(y)) if x != y => {
                return Err(Clash::Assigned(a.home(problem), b.home(problem)));
            }
            (x, y) => x.or(y),
        };
        let clash = |_| Clash::Bindings(a.binding.clone(), b.binding.clone());
        let mut binding = a.binding.combine(&b.binding).map_err(clash)?;
        if let Some(device) = assigned.map(|d| &problem.devices[d].name)
            && !binding.matches(device)
        {
            if !moves {
                return Err(Clash::AssignedAndBinding(device.clone(), binding));
            }
            binding = DeviceSpec::default();
        }
        Ok(Self { assigned, binding, ..Self::default() })
    }

    /// The devices among those that run everything which meet the request, or with soft placement its
    /// nearest relaxation that any meets: wishes give way first, then resources.
    pub(crate) fn devices(&self, problem: &Problem, runs: &[bool]) -> Vec<usize> {
        let matching = |spec: &DeviceSpec| -> Vec<usize> {
            let fits = |&d: &usize| runs[d] && spec.matches(&problem.devices[d].name);
            (0..problem.devices.len()).filter(fits).collect()
        };
        let merged = self.merged(problem);
        let found = matching(&merged);
        if !found.is_empty() || !problem.soft_placement {
            return found;
        }
        let found = matching(&self.wished.relaxed().merge(&self.fixed(problem)));
        if !found.is_empty() {
            return found;
        }
        matching(&merged.relaxed().merge(&self.home(problem)))
    }
}

/// Two specs that do not conflict, as one.
fn both(a: &DeviceSpec, b: DeviceSpec) -> DeviceSpec {
    a.combine(&b).unwrap_or(b)
}

impl fmt::Display for Clash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Assigned(a, b) => write!(f, "they are assigned to {a} and {b}"),
            Self::AssignedAndBinding(assigned, asked) => {
                write!(f, "one is assigned to {assigned}, and a variable asks for {asked}")
            }
            Self::Bindings(a, b) => write!(f, "variables ask for {a} and {b}"),
            Self::Requests(a, b) => write!(f, "they ask for {a} and {b}"),
            Self::NoKernel => f.write_str("no device has a kernel for all that would share one"),
            Self::NoDevice => {
                f.write_str("no device that was asked for has a kernel for all of it")
            }
        }
    }
}
