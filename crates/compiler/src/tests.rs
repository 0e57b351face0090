//! Plans and programs of small graphs, printed.

use convoke_graph_core::train::{Optimizer, Sgd};
use convoke_graph_core::{
    BatchNorm, Conv2d, DType, Error, Graph, HostTensor, Init, Operation, Result, Shape, Tensor,
    dims,
};
use expect_test::{Expect, expect};

use crate::{
    Apart, CompileOptions, DeviceIndex, Group, GroupLimits, HOST, InputFact, Kernel, Places, Plan,
    Program, Signature, Source, ValueId, compile, live_bytes, recompute,
};

/// Everything on the CPU.
pub(crate) fn host(unplaced: &crate::Unplaced<'_>) -> Result<Places> {
    let variables = unplaced.variables().into_iter().map(|variable| (variable, HOST)).collect();
    let groups = vec![HOST; unplaced.program.groups.len()];
    Ok(Places { groups, variables, ..Places::default() })
}

pub(crate) fn signature(
    fetches: &[&Tensor],
    targets: &[&Operation],
    feeds: &[&Tensor],
) -> Signature {
    Signature {
        residents: Vec::new(),
        fetches: fetches.iter().map(|t| t.output()).collect(),
        targets: targets.iter().map(|o| o.id()).collect(),
        feeds: feeds.iter().map(|t| t.output()).collect(),
        ..Signature::default()
    }
}

pub(crate) fn program(
    g: &Graph,
    signature: Signature,
    shapes: &[&[usize]],
    place: &crate::Placer<'_>,
) -> Result<Program> {
    let plan = Plan::new(&g.snapshot(), signature)?;
    let fact = |dims: &&[usize]| -> Result<InputFact> {
        Ok(InputFact { shape: Shape::new(dims)?, contents: None, donated: None })
    };
    let inputs: Vec<InputFact> = shapes.iter().map(fact).collect::<Result<_>>()?;
    compile(
        &plan,
        &inputs,
        &CompileOptions { limits: GroupLimits::default(), simplify: true, place },
    )
}

#[track_caller]
fn check(program: Result<Program>, expected: &Expect) {
    expected.assert_eq(&program.map_or_else(|e| format!("{e:?}"), |p| p.to_string()));
}

#[test]
fn a_chain_becomes_one_group_and_shape_arithmetic_is_folded() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, dims![None, 4]);
    let y = ((&x * 2.0 + 1.0).relu() - 3.0).mean(());
    let grad = y.gradients(&[&x])[0].clone().unwrap();
    check(
        program(&g, signature(&[&y, &grad], &[], &[&x]), &[&[3, 4]], &host),
        &expect![[r#"
            v0 f32[3, 4] = feed %0
            v6 f32[] = constant f32[] [0.083333336]
            segment on device 0
              v5 f32[], v9 f32[3, 4] = [rows after 0 axes: t0 = mul(i0, f32[] [2]); t1 = add(t0, f32[] [1]); t2 = relu(t1); t3 = sub(t2, f32[] [3]); f0 = Mean(t3); t4 = greater(t1, f32[] [0]); t5 = select(t4, f32[] [0.083333336], f32[] [0]); t6 = mul(t5, f32[] [2]); store f0, t6] of v0
            fetch v5, v9
        "#]],
    );
}

#[test]
fn producers_are_turned_to_the_order_of_their_reader() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, dims![4, 3]);
    let shift = g.placeholder("shift", DType::F32, dims![3]);
    let spread = ((&x - &shift).square().mean(0) + 1.0).sqrt();
    let turned = (&x + &shift).transpose().exp().reshape(&[-1]) * 2.0;
    check(
        program(&g, signature(&[&spread, &turned], &[], &[&x, &shift]), &[&[4, 3], &[3]], &host),
        &expect![[r#"
            v0 f32[4, 3] = feed %0
            v1 f32[3] = feed %1
            segment on device 0
              v6 f32[3] = [columns after 1 axes: t0 = sub(i0, i1); t1 = square(t0); f0 = Mean(t1); store f0; t0 = add(i0, f32[] [1]); t1 = sqrt(t0); store t1] of v0[3, 4]+0*[1, 3], v1[3, 4]+0*[1, 0]
              v9 f32[12] = [t0 = add(i0, i1); t1 = exp(t0); t2 = mul(t1, f32[] [2]); store t2] of v0[3, 4]+0*[1, 3], v1[3, 4]+0*[1, 0]
            fetch v6, v9
        "#]],
    );
}

#[test]
fn a_dense_layer_and_its_step() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, dims![None, 4]);
    let labels = g.placeholder("labels", DType::I32, dims![None]);
    let w = g.variable("w", Init::Zeros, DType::F32, [4, 3]);
    let b = g.variable("b", Init::Zeros, DType::F32, [3]);
    let loss = (x.matmul(&w) + &b).cross_entropy(&labels).mean(());
    let step = Sgd::new(0.5).minimize(&loss);
    check(
        program(&g, signature(&[&loss], &[&step], &[&x, &labels]), &[&[2, 4], &[2]], &host),
        &expect![[r#"
            v0 f32[2, 4] = feed %0
            v1 i32[2] = feed %1
            v2 f32[4, 3] = variable %2
            v3 f32[3] = variable %8
            v7 i32[3] = constant i32[3] [0, 1, 2]
            segment on device 0
              v4 f32[2, 3] = [matmul] of v0, v2
              v26 f32[2, 3], v19 f32[] = [rows after 1 axes: t0 = add(i0, i1); f0 = Max(t0); t1 = equal(i2, i3); t2 = cast f32(t1); t3 = sub(t0, f0); t4 = exp(t3); f1 = Sum(t4); t5 = log(f1); t6 = sub(t3, t5); t7 = mul(t6, t2); f2 = Sum(t7); t8 = mul(f32[] [-0.5], t2); t9 = neg(t8); f3 = Sum(t9); t10 = reciprocal(f1); t11 = mul(f3, t10); t12 = mul(t11, t4); t13 = add(t8, t12); t14 = neg(f2); check i2 < 3; store t13; Mean of rows(t14)] of v4, v3[2, 3]+0*[0, 1], v1[2, 3]+0*[1, 0], v7[2, 3]+0*[0, 1]
              v30 f32[4, 3] = [matmul; t0 = mul(i0, f32[] [0.5]); t1 = sub(i1, t0); store t1] of v0[4, 2]+0*[1, 4], v26, v2
              v32 f32[3] = [Sum after 1 axes; t0 = mul(i0, f32[] [0.5]); t1 = sub(i1, t0); store t1] of v26[3, 2]+0*[1, 3], v3
              commit %2 = v30
              commit %8 = v32
            fetch v19
        "#]],
    );
}

#[test]
fn two_devices_make_segments_with_transfers() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, dims![8, 8]);
    let w = g.variable("w", Init::Zeros, DType::F32, [8, 8]);
    let a = x.matmul(&w);
    let b = a.relu().sum(());
    let place = |unplaced: &crate::Unplaced<'_>| -> Result<Places> {
        let mut places = host(unplaced)?;
        places.groups[0] = DeviceIndex(1);
        places.variables.values_mut().for_each(|d| *d = DeviceIndex(1));
        Ok(places)
    };
    check(
        program(&g, signature(&[&b, w.value()], &[], &[&x]), &[&[8, 8]], &place),
        &expect![[r#"
            v0 f32[8, 8] = feed %0
            v1 f32[8, 8] = variable %1
            segment on device 1
              upload v0
              v2 f32[8, 8] = [matmul] of v0, v1
              download v2, v1
            segment on device 0
              v4 f32[] = [rows after 0 axes: t0 = relu(i0); f0 = Sum(t0); store f0] of v2
            fetch v4, v1
        "#]],
    );
}

/// Whether a variable is stored in the last segment that works on its device does not depend on other stores.
#[test]
fn what_comes_too_late_to_be_stored_shares_one_more_segment() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, dims![8, 8]);
    let [a, b, c, d] =
        ["a", "b", "c", "d"].map(|name| g.variable(name, Init::Zeros, DType::F32, [8, 8]));
    let first = x.matmul(&x);
    let second = first.matmul(&x);
    let stores = [c.assign(&second), a.assign(&first), b.assign(a.value()), d.assign(&second)];
    let targets = stores.map(|store| store.operation());
    let place = |unplaced: &crate::Unplaced<'_>| -> Result<Places> {
        let mut places = host(unplaced)?;
        places.groups[0] = DeviceIndex(1);
        places.variables.values_mut().for_each(|d| *d = DeviceIndex(1));
        Ok(places)
    };
    check(
        program(&g, signature(&[&second], &targets.each_ref(), &[&x]), &[&[8, 8]], &place),
        &expect![[r#"
            v0 f32[8, 8] = feed %0
            v1 f32[8, 8] = variable %1
            segment on device 1
              upload v0
              v2 f32[8, 8] = [matmul] of v0, v0
              commit %1 = v2
              commit %7 = v1
              download v2
            segment on device 0
              v3 f32[8, 8] = [matmul] of v2, v0
            segment on device 1
              upload v3
              commit %13 = v3
              commit %19 = v3
            fetch v3
        "#]],
    );
}

/// What one device has is sent before another stores it, also where the one has no work, or works after the other.
#[test]
fn variables_of_other_devices_are_read_before_they_are_stored() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, dims![8, 8]);
    let [a, b] = ["a", "b"].map(|name| g.variable(name, Init::Zeros, DType::F32, [8, 8]));
    let stores = [a.assign(b.value()), b.assign(a.value())].map(|store| store.operation());
    let targets = stores.each_ref();
    let place = |unplaced: &crate::Unplaced<'_>| -> Result<Places> {
        let mut places = host(unplaced)?;
        places.groups.iter_mut().zip([2, 1]).for_each(|(d, at)| *d = DeviceIndex(at));
        for (variable, device) in unplaced.variables().into_iter().zip([1, 2]) {
            places.variables.insert(variable, DeviceIndex(device));
        }
        Ok(places)
    };
    check(
        program(&g, signature(&[b.value()], &targets, &[]), &[], &place),
        &expect![[r#"
            v0 f32[8, 8] = variable %1
            v1 f32[8, 8] = variable %7
            segment on device 1
              download v0
            segment on device 2
              download v1
            segment on device 1
              upload v1
              commit %1 = v1
            segment on device 2
              upload v0
              commit %7 = v0
            fetch v1
        "#]],
    );
    let (first, second) = (x.matmul(&x), x.matmul(x.transpose()));
    check(
        program(&g, signature(&[&first, &second], &targets, &[&x]), &[&[8, 8]], &place),
        &expect![[r#"
            v0 f32[8, 8] = feed %0
            v1 f32[8, 8] = variable %1
            v2 f32[8, 8] = variable %7
            segment on device 2
              upload v0
              v3 f32[8, 8] = [matmul] of v0, v0
              download v2, v3
            segment on device 1
              upload v0, v2
              v4 f32[8, 8] = [matmul] of v0, v0[8, 8]+0*[1, 8]
              commit %1 = v2
              download v1, v4
            segment on device 2
              upload v1
              commit %7 = v1
            fetch v3, v4
        "#]],
    );
}

/// Devices with one queue copy what they need of each other: variables from where they lie, or what the segment that
/// stores into them has kept.
#[test]
fn devices_with_one_queue_take_what_another_has() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, dims![8, 8]);
    let [a, b] = ["a", "b"].map(|name| g.variable(name, Init::Zeros, DType::F32, [8, 8]));
    let stores = [a.assign(b.value()), b.assign(a.value())].map(|store| store.operation());
    let place = |unplaced: &crate::Unplaced<'_>| -> Result<Places> {
        let mut places = host(unplaced)?;
        places.groups.iter_mut().zip([1, 2, 1, 2]).for_each(|(d, at)| *d = DeviceIndex(at));
        for (variable, device) in unplaced.variables().into_iter().zip([1, 2]) {
            places.variables.insert(variable, DeviceIndex(device));
        }
        places.queues.join(1, 2);
        Ok(places)
    };
    check(
        program(&g, signature(&[b.value()], &stores.each_ref(), &[]), &[], &place),
        &expect![[r#"
            v0 f32[8, 8] = variable %1
            v1 f32[8, 8] = variable %7
            segment on device 1
              take v1 from where it lies
              commit %1 = v1
            segment on device 2
              take v0 from segment 0
              commit %7 = v0
              download v1
            fetch v1
        "#]],
    );
    let first = x.matmul(&x);
    let third = first.matmul(a.value()).matmul(&first);
    let last = third.matmul(&first).matmul(a.value());
    check(
        program(&g, signature(&[&first, &last], &[&stores[1]], &[&x]), &[&[8, 8]], &place),
        &expect![[r#"
            v0 f32[8, 8] = feed %0
            v1 f32[8, 8] = variable %1
            segment on device 1
              upload v0
              v2 f32[8, 8] = [matmul] of v0, v0
              download v1, v2
            segment on device 2
              take v2 from segment 0
              take v1 from where it lies
              v3 f32[8, 8] = [matmul] of v2, v1
            segment on device 1
              take v3 from segment 1
              take v2 from segment 0
              v4 f32[8, 8] = [matmul] of v3, v2
            segment on device 2
              take v4 from segment 2
              take v2 from segment 1
              take v1 from segment 1
              v5 f32[8, 8] = [matmul] of v4, v2
              commit %7 = v1
              download v5
            segment on device 0
              v6 f32[8, 8] = [matmul] of v5, v1
            fetch v2, v6
        "#]],
    );
}

#[test]
fn groups_fit_what_a_device_binds() {
    let g = Graph::new();
    let xs: Vec<Tensor> = (0..6).map(|_| g.placeholder("x", DType::F32, dims![4])).collect();
    let sum = xs.iter().skip(1).fold(xs[0].clone(), |sum, x| sum + x);
    let plan = Plan::new(&g.snapshot(), signature(&[&sum], &[], &xs.iter().collect::<Vec<_>>()));
    let four = Shape::new(&[4]).unwrap();
    let inputs = vec![InputFact { shape: four, contents: None, donated: None }; 6];
    let program = |bindings| {
        let limits = GroupLimits::default().with_bindings(bindings);
        let options = CompileOptions { limits, simplify: true, place: &host };
        compile(plan.as_ref().unwrap(), &inputs, &options).unwrap()
    };
    // Six inputs, a result and a status word.
    assert_eq!(program(8).groups.len(), 1);
    let small = program(4);
    let n_buffers = small.groups.iter().map(|g| g.inputs.len() + g.outputs.len());
    assert_eq!(n_buffers.collect::<Vec<_>>(), [3; 5]);
    // Each of four sums would bind one more operand.
    let why: Vec<Apart> = small.apart.into_iter().map(|(_, why)| why).collect();
    assert_eq!(why, vec![Apart::Buffers(4, 3); 4]);
}

/// So many groups of elementwise work on one vector, and why they are not one.
#[track_caller]
fn elementwise_groups(f: impl Fn(&Tensor) -> Tensor) -> (usize, Vec<Apart>) {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, dims![4]);
    let y = f(&x);
    let plan = Plan::new(&g.snapshot(), signature(&[&y], &[], &[&x])).unwrap();
    let input = InputFact { shape: Shape::new(&[4]).unwrap(), contents: None, donated: None };
    let options = CompileOptions { limits: GroupLimits::default(), simplify: true, place: &host };
    let program = compile(&plan, &[input], &options).unwrap();
    (program.groups.len(), program.apart.into_iter().map(|(_, why)| why).collect())
}

/// A long chain needs few registers; a value needs one from where it is computed to where it is last read.
#[test]
fn groups_need_no_more_registers_than_there_are() {
    let chain = |n: usize| elementwise_groups(|x| (0..n).fold(x.clone(), |y, _| (y * x).tanh()));
    assert_eq!(chain(100), (1, vec![]));
    // 256 operations, and the four before them.
    assert_eq!(chain(130), (2, vec![Apart::Operations(260, 256)]));
    // All are needed for the first sum, and that.
    let wide = |n: usize| {
        elementwise_groups(|x| {
            let tanh = |x: &Tensor| Some(x.tanh());
            let all: Vec<Tensor> = std::iter::successors(tanh(x), tanh).take(n).collect();
            all.iter().skip(1).fold(all[0].clone(), |sum, t| sum + t)
        })
    };
    assert_eq!(wide(47).0, 1);
    assert_eq!(wide(60), (2, vec![Apart::Registers(61, 48); 2]));
    // And so are constants, which a CPU repeats for a block of elements.
    let scaled = |n: u8| {
        elementwise_groups(|x| (2..n + 2).fold(x.clone(), |y, i| (y * f32::from(i)).tanh()))
    };
    assert_eq!(scaled(40).0, 1);
    assert_eq!(scaled(60), (2, vec![Apart::Registers(62, 48)]));
}

#[test]
fn values_between_kernels_say_why() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, dims![8, 8]);
    let product = x.matmul(&x);
    let used_twice = &product + 1.0;
    let turned = product.transpose() * 2.0 + product.sum(0);
    let checked = x.gather(product.argmax(1), 0) + used_twice.sum(());
    let fetched = &x * 3.0;
    let fetches = [&used_twice, &turned, &checked, &fetched, &(&fetched + x.matmul(&fetched))];
    let program = program(&g, signature(&fetches, &[], &[&x]), &[&[8, 8]], &host).unwrap();
    let line = |(value, why): &(ValueId, Apart)| format!("{value}: {why}\n");
    let text: String = program.apart.iter().map(line).collect();
    expect![[r#"
        v0 f32[8, 8] = feed %0
        segment on device 0
          v1 f32[8, 8] = [matmul] of v0, v0
          v4 f32[8] = [Sum after 1 axes] of v1[8, 8]+0*[1, 8]
          v5 f32[8, 8] = [t0 = mul(i0, f32[] [2]); t1 = add(t0, i1); store t1] of v1[8, 8]+0*[1, 8], v4[8, 8]+0*[0, 1]
          v6 i32[8] = [ArgMax after 1 axes] of v1
          v7 f32[8, 8] = [gather 0] of v0, v6
          v2 f32[8, 8], v9 f32[8, 8] = [rows after 0 axes: t0 = add(i0, f32[] [1]); f0 = Sum(t0); t1 = add(i1, f0); store t0, t1] of v1, v7
          v10 f32[8, 8] = [t0 = mul(i0, f32[] [3]); store t0] of v0
          v12 f32[8, 8] = [matmul; t0 = add(i1, i0); store t0] of v0, v10, v10
        fetch v2, v5, v9, v10, v12
        v1: 4 kernels read it
        v4: its two ends go over [8] and [8, 8]
        v6: the kernel that computes it takes no work behind
        v7: the kernel that computes it takes no work behind
        v10: a fetch or a variable needs it too
    "#]].assert_eq(&format!("{program}{text}"));
}

#[test]
fn reads_see_the_start_unless_they_follow_an_assignment() {
    let g = Graph::new();
    let v = g.variable("v", Init::Constant(10.0), DType::F32, []);
    let before = v.value().identity();
    let add = v.assign_add(1.0);
    let after = g.after(&[&add.operation()], || v.read());
    check(
        program(&g, signature(&[&before, &after], &[], &[]), &[], &host),
        &expect![[r#"
            v0 f32[] = variable %0
            segment on device 0
              v1 f32[] = [t0 = add(i0, f32[] [1]); store t0] of v0
              commit %0 = v1
            fetch v0, v1
        "#]],
    );
}

#[test]
fn unordered_assignments_are_refused() {
    let g = Graph::new();
    let v = g.variable("v", Init::Zeros, DType::F32, []);
    let (a, b) = (v.assign(1.0).operation(), v.assign(2.0).operation());
    check(
        program(&g, signature(&[], &[&a, &b], &[]), &[], &host),
        &expect![
            "InvalidArgument(assign_1: assign and assign_1 both assign v in one run, and neither follows the other; build one inside of after(&[..]) of the other)"
        ],
    );
}

#[test]
fn an_unfed_placeholder_and_a_refused_operation_name_themselves() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, dims![2]);
    check(
        program(&g, signature(&[&x.relu()], &[], &[]), &[], &host),
        &expect!["InvalidArgument(x: the placeholder f32[2] is needed and not fed; add a feed)"],
    );
    let y = g.placeholder("y", DType::F32, dims![3]);
    let sum = (&x + &y).relu();
    let error: Error = program(&g, signature(&[&sum], &[], &[]), &[], &host).unwrap_err();
    assert_eq!(error.node(), Some("add"));
    assert!(error.location().unwrap().file().ends_with("tests.rs"));
}

/// 4 KiB in and out of an inner product of 16 KiB; what is read at both ends is not kept meanwhile.
#[test]
fn what_is_cheap_is_computed_again() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, dims![32, 32]);
    let w = g.placeholder("w", DType::F32, dims![32, 128]);
    let doubled = &x * 2.0;
    let y = (doubled.matmul(&w).matmul(w.transpose()) + doubled).sum(());
    let shapes: [&[usize]; 2] = [&[32, 32], &[32, 128]];
    let mut program = program(&g, signature(&[&y], &[], &[&x, &w]), &shapes, &host).unwrap();
    assert_eq!(live_bytes(&program, 0), 24 << 10);
    assert!(recompute(&mut program, 0, |program| live_bytes(program, 0) <= 20 << 10));
    expect![[r#"
        v0 f32[32, 32] = feed %0
        v1 f32[32, 128] = feed %1
        segment on device 0
          v2 f32[32, 32] = [t0 = mul(i0, f32[] [2]); store t0] of v0
          v3 f32[32, 128] = [matmul] of v2, v1
          v4 f32[32, 32] = [matmul] of v3, v1[128, 32]+0*[1, 128]
          v7 f32[32, 32] = [t0 = mul(i0, f32[] [2]); store t0] of v0
          v6 f32[] = [rows after 0 axes: t0 = add(i0, i1); f0 = Sum(t0); store f0] of v4, v7
        fetch v6
    "#]]
    .assert_eq(&program.to_string());
    assert!(!recompute(&mut program, 0, |program| live_bytes(program, 0) <= 19 << 10));
}

#[test]
fn casts_cancel_where_nothing_is_lost() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::I8, dims![4]);
    let back = x.cast(DType::F32).cast(DType::I8);
    let further = x.cast(DType::I32).cast(DType::I16);
    // Of an integer the low bits are taken, of a float the nearest.
    let wraps = x.cast(DType::F32).cast(DType::U8);
    let h = g.placeholder("h", DType::F32, dims![4]);
    let loses = h.cast(DType::F16).cast(DType::F32);
    let same = h.cast(DType::F32);
    let fetches = [&back, &further, &wraps, &loses, &same];
    check(
        program(&g, signature(&fetches, &[], &[&x, &h]), &[&[4], &[4]], &host),
        &expect![[r#"
            v0 i8[4] = feed %0
            v1 f32[4] = feed %7
            segment on device 0
              v4 i16[4] = [t0 = cast i16(i0); store t0] of v0
              v5 u8[4] = [t0 = cast f32(i0); t1 = cast u8(t0); store t1] of v0
              v7 f32[4] = [t0 = cast f16(i0); t1 = cast f32(t0); store t1] of v1
            fetch v0, v4, v5, v7, v1
        "#]],
    );
}

#[test]
fn factors_of_channels_go_into_constant_filters() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, dims![1, 1, 3, 3]);
    let filters = g.constant(
        HostTensor::from([1.0f32, 2.0]).reshaped(Shape::new(&[2, 1, 1, 1]).unwrap()).unwrap(),
    );
    let [scale, shift, mean, variance] = [[4.0f32, 6.0], [0.5, 0.25], [3.0, 5.0], [4.0, 9.0]]
        .map(|v| g.constant(HostTensor::from(v)));
    let y = x.conv2d(&filters, Conv2d::default());
    let norm = BatchNorm { axis: 1, epsilon: 0.0 };
    let normal = y.batch_norm([&scale, &shift], [&mean, &variance], norm);
    let program = program(&g, signature(&[&normal], &[], &[&x]), &[&[1, 1, 3, 3]], &host).unwrap();
    let filters = |program: &Program| -> Vec<Vec<f32>> {
        let groups = program.groups.iter().filter(|g| matches!(g.kernel, Kernel::Conv2d(_)));
        let source = |group: &Group| match &program.value(group.inputs[1].value).source {
            Source::Constant(tensor) => tensor.to_vec().unwrap(),
            other => panic!("{other:?}"),
        };
        groups.map(source).collect()
    };
    // Factors 4/2 and 6/3.
    assert_eq!(filters(&program), [[2.0, 4.0]]);
    expect![[r#"
        v0 f32[1, 1, 3, 3] = feed %0
        v1 f32[2, 1, 1, 1] = constant f32[2, 1, 1, 1] [1, 2]
        v3 f32[2, 1, 1] = constant f32[2, 1, 1] [3, 5]
        v5 f32[2, 1, 1, 1] = constant f32[2, 1, 1, 1] [2, 4]
        v7 f32[2, 1, 1] = constant f32[2, 1, 1] [6, 10]
        v9 f32[2, 1, 1] = constant f32[2, 1, 1] [0.5, 0.25]
        segment on device 0
          v10 f32[1, 2, 3, 3] = [conv2d [1, 1] stride [1, 1] dilation [1, 1] groups 1 pad [0, 0] Nchw; t0 = sub(i0, i1); t1 = add(t0, i2); store t1] of v0, v5, v7[1, 2, 3, 3]+0*[0, 1, 0, 0], v9[1, 2, 3, 3]+0*[0, 1, 0, 0]
        fetch v10
    "#]].assert_eq(&program.to_string());
    // What is needed by itself stays.
    let both = signature(&[&normal, &y], &[], &[&x]);
    let both = self::program(&g, both, &[&[1, 1, 3, 3]], &host).unwrap();
    assert_eq!(filters(&both), [[1.0, 2.0]]);
    // Also where the nodes are not in the order of their ids.
    let input = g.placeholder("input", DType::F32, dims![1, 1, 3, 3]);
    let later = &input * 2.0;
    let mut signature = signature(&[&normal], &[], &[&input]);
    signature.connections = vec![(later.output(), x.output())];
    let graph = g.snapshot().connect(&signature.connections, &signature.feeds).unwrap().0;
    let plan = Plan::new(&graph, signature).unwrap();
    assert!(!plan.nodes.is_sorted_by_key(|node| node.id));
    let shape = Shape::new(&[1, 1, 3, 3]).unwrap();
    let fed = InputFact { shape, contents: None, donated: None };
    let options = CompileOptions { limits: GroupLimits::default(), simplify: true, place: &host };
    assert_eq!(filters(&compile(&plan, &[fed], &options).unwrap()), [[2.0, 4.0]]);
}

#[test]
fn what_only_gives_its_shape_is_not_computed() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, dims![8, 4]);
    let large = x.matmul(x.transpose());
    let shape = large.shape();
    let program = program(&g, signature(&[&shape], &[], &[&x]), &[&[8, 4]], &host).unwrap();
    assert!(program.groups.is_empty(), "{program}");
}

#[test]
fn few_short_rows_are_added_up_where_they_are_computed() {
    let g = Graph::new();
    let x = g.placeholder("x", DType::F32, dims![None, 3]);
    let losses = x.square().sum(1);
    let mean = (-&losses).mean(());
    let of = |fetches: &[&Tensor], rows: usize| {
        program(&g, signature(fetches, &[], &[&x]), &[&[rows, 3]], &host).unwrap()
    };
    let alone = of(&[&mean], 64).to_string();
    expect![[r#"
        v0 f32[64, 3] = feed %0
        segment on device 0
          v4 f32[] = [rows after 1 axes: t0 = square(i0); f0 = Sum(t0); t1 = neg(f0); Mean of rows(t1)] of v0
        fetch v4
    "#]].assert_eq(&alone);
    // What else is needed is stored as well.
    let both = of(&[&mean, &losses], 2).to_string();
    expect![[r#"
        v0 f32[2, 3] = feed %0
        segment on device 0
          v2 f32[2], v4 f32[] = [rows after 1 axes: t0 = square(i0); f0 = Sum(t0); t1 = neg(f0); store f0; Mean of rows(t1)] of v0
        fetch v4, v2
    "#]].assert_eq(&both);
    assert_eq!(of(&[&mean], 65).groups.len(), 2);
}
