//! What is saved is of one moment, while runs change it. TensorFlow promises nothing of the kind: its `save_op` reads one
//! variable after the other.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use convoke::ModelSpec;
use convoke::prelude::*;
use convoke_tests::{Folder, TestDevice, devices};
use serde_json::Value;

const SAVES: usize = 200;
const LEN: usize = 1024;

/// Variables that each run of `step` leaves with one and the same number, for which it draws as often.
struct Even {
    session: Session,
    variables: Vec<Variable>,
    step: Operation,
}

/// How a step stores.
#[derive(Clone, Copy, PartialEq, Debug)]
enum How {
    /// By one program.
    Plainly,
    /// Also in a branch.
    InABranch,
    /// Also into a table.
    IntoATable,
}

impl Even {
    fn on(device: &TestDevice, how: How) -> Self {
        let g = Graph::new();
        let variable = |name: &str| g.untrained_variable(name, Init::Zeros, F32, [LEN]);
        // One lives where the device's policy has it, one on the host.
        let (a, b) = (variable("a"), g.device("CPU:0", || variable("b")));
        let noise = g.random_uniform(&[LEN], F32, 5);
        let next = a.read() + noise.greater(-1.0).cast(F32);
        let host = g.device("CPU:0", || b.assign(b.read() + 1.0));
        let mut stores = vec![a.assign(&next).operation(), host.operation()];
        let mut variables = vec![a.clone(), b];
        match how {
            How::Plainly => {}
            How::InABranch => {
                let c = variable("c");
                let is_even = a.read().sum(()).greater(-1.0);
                let add = || c.assign(c.read() + 1.0).slice(&[0], &[Some(1)]);
                stores.push(g.cond(&is_even, add, || g.constant([0.0f32])).operation());
                variables.push(c);
            }
            How::IntoATable => {
                let table = g.mutable_table("table", I64, F32);
                let n = next.slice(&[0], &[Some(1)]);
                stores.push(table.insert(&g.constant([7i64]), &n));
            }
        }
        let step = g.group(&stores);
        let session = device.session(&g);
        session.run(&[], g.initializers()).unwrap();
        session.run(&[], &step).unwrap();
        Self { session, variables, step }
    }

    /// Saves again and again while a thread makes steps. Returns how many numbers were found.
    fn check(&self, what: &str, save: impl Fn() -> Vec<f32>) {
        let (has_ended, n_steps) = (AtomicBool::new(false), AtomicU32::new(0));
        let saved = thread::scope(|scope| {
            scope.spawn(|| {
                while !has_ended.load(Ordering::Relaxed) {
                    self.session.run(&[], &self.step).unwrap();
                    n_steps.fetch_add(1, Ordering::Relaxed);
                }
            });
            let saved: Vec<Vec<f32>> = (0..SAVES).map(|_| save()).collect();
            has_ended.store(true, Ordering::Relaxed);
            saved
        });
        for (at, numbers) in saved.iter().enumerate() {
            let is_even = numbers.iter().all(|n| *n == numbers[0]);
            assert!(is_even && numbers[0] >= 1.0, "{what}, {at}: {numbers:?}");
        }
        let mut moments: Vec<u32> = saved.iter().map(|numbers| numbers[0] as u32).collect();
        moments.dedup();
        assert!(moments.is_sorted() && moments.len() > 1, "{what}: {moments:?}");
        assert!(n_steps.load(Ordering::Relaxed) > 1);
    }
}

/// The notes of a file, and the first and last elements of its tensors of f32.
fn read(path: &Path) -> (Value, Vec<f32>) {
    let bytes = std::fs::read(path).unwrap();
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..start]).unwrap();
    let mut numbers = Vec::new();
    for (name, tensor) in header.as_object().unwrap() {
        if name != "__metadata__" && tensor["dtype"] == "F32" {
            let at = |i: usize| start + tensor["data_offsets"][i].as_u64().unwrap() as usize;
            for at in [at(0), at(1) - 4] {
                numbers.push(f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()));
            }
        }
    }
    (header["__metadata__"].clone(), numbers)
}

#[test]
fn a_checkpoint_is_of_one_moment() {
    for device in devices() {
        for how in [How::Plainly, How::IntoATable, How::InABranch] {
            let folder = Folder::new("moments");
            let even = Even::on(device, how);
            let path = folder.path().join("checkpoint.safetensors");
            even.check(&format!("{} {how:?}", device.name), || {
                even.session.save(&path).unwrap();
                let (notes, mut numbers) = read(&path);
                let n_tables = usize::from(how == How::IntoATable);
                assert_eq!(numbers.len(), 2 * (even.variables.len() + n_tables));
                let draws = notes["convoke.draws"].as_str().unwrap();
                numbers.push(draws.split(' ').next().unwrap().parse().unwrap());
                numbers
            });
        }
    }
}

#[test]
fn a_saver_of_shards_saves_one_moment() {
    for device in devices() {
        let folder = Folder::new("moments");
        let even = Even::on(device, How::Plainly);
        let saver = Saver::new(folder.path().join("model")).shards(2).max_to_keep(1);
        let other = Even::on(device, How::Plainly);
        even.check(&device.name, || {
            saver.save(&even.session, 1).unwrap();
            saver.restore_latest(&other.session).unwrap();
            let values = other.session.run(&[], &other.variables).unwrap();
            let ends = |value: &HostTensor| {
                let all = value.to_vec::<f32>().unwrap();
                [all[0], all[LEN - 1]]
            };
            values.iter().flat_map(ends).collect()
        });
    }
}

#[test]
fn a_model_is_of_one_moment() {
    for device in devices() {
        for how in [How::Plainly, How::IntoATable, How::InABranch] {
            let folder = Folder::new("moments");
            let even = Even::on(device, how);
            let path = folder.path().join("model.safetensors");
            let spec = ModelSpec::trainable(&[], &[], &[("step", &even.step)]);
            even.check(&format!("{} {how:?}", device.name), || {
                even.session.save_model(&path, &spec).unwrap();
                let (notes, mut numbers) = read(&path);
                let model = notes["convoke.model"].as_str().unwrap();
                let model: Value = serde_json::from_str(model).unwrap();
                numbers.push(model["draws"][0][1].as_u64().unwrap() as f32);
                if how == How::IntoATable {
                    let bytes = model["tables"][0]["values"]["bytes"].as_str().unwrap();
                    let bits = u32::from_str_radix(bytes, 16).unwrap().swap_bytes();
                    numbers.push(f32::from_bits(bits));
                }
                numbers
            });
        }
    }
}

/// What a restore puts in place, no run mixes with what it stores.
#[test]
fn a_restore_is_between_two_runs() {
    for device in devices() {
        let folder = Folder::new("moments");
        let path = |name: &str| folder.path().join(name);
        let (kept, saved) = (path("kept.safetensors"), path("saved.safetensors"));
        let g = Graph::new();
        let x = g.placeholder("x", F32, [LEN]);
        let variable = |name: &str| g.untrained_variable(name, Init::Zeros, F32, [LEN]);
        let (a, b) = (variable("a"), g.device("CPU:0", || variable("b")));
        let table = g.mutable_table("table", I64, F32);
        let host = g.device("CPU:0", || b.assign(&x * 1.0));
        let insert = table.insert(&g.constant([7i64]), &x.slice(&[0], &[Some(1)]));
        let twice = &a * 2.0;
        let step = g.group(&[a.assign(&x * 1.0).operation(), host.operation(), insert]);
        let session = device.session(&g);
        let run = |n: u32| session.run(&[x.feed(vec![n as f32; LEN])], &step).unwrap();
        session.run(&[], g.initializers()).unwrap();
        session.run(&[], &twice).unwrap();
        run(0);
        session.save(&kept).unwrap();
        let has_ended = AtomicBool::new(false);
        let found = thread::scope(|scope| {
            scope.spawn(|| {
                for n in 1.. {
                    run(n);
                    if has_ended.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            let found: Vec<Vec<f32>> = (0..SAVES)
                .map(|_| {
                    session.restore(&kept).unwrap();
                    session.save(&saved).unwrap();
                    read(&saved).1
                })
                .collect();
            has_ended.store(true, Ordering::Relaxed);
            found
        });
        for (at, numbers) in found.iter().enumerate() {
            assert_eq!(numbers.len(), 6);
            assert!(numbers.iter().all(|n| *n == numbers[0]), "{}, {at}: {numbers:?}", device.name);
        }
    }
}
