//! What errors tell of themselves.

use std::fs;
#[cfg(unix)]
use std::fs::File;
use std::sync::Arc;

use convoke::input::{Compression, TfRecordWriter};
use convoke::prelude::*;
use convoke::{
    Backward, Class, CustomKernel, Fact, Facts, KernelShapes, Op, OpError, TensorView,
    TensorViewMut, Values, Wgsl,
};
use convoke_tests::{Folder, devices};

/// TensorFlow: `testErrorsReported`: a name that is not there.
#[test]
fn errors_reported() {
    let g = Graph::new();
    g.constant(1.0f32).named("a");
    for name in ["foo:0", "foo", "a:1", "a:x", ":0", ""] {
        let error = g.tensor(name).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::NotFound, "{name}: {error}");
    }
}

/// TensorFlow: `testErrorPayload`: the error leads to the operation.
#[test]
fn error_payload() {
    for device in devices() {
        let g = Graph::new();
        let a = g.scope("inputs", || g.placeholder("a", F32, dims![None, 3]));
        let error = device.session(&g).run(&[], a.relu()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        let name = error.node().unwrap();
        assert_eq!(g.operation(name).unwrap().id(), a.operation().id(), "{error}");
        let text = error.to_string();
        assert!(text.contains("f32") && text.contains("3]"), "{text}");
    }
}

/// TensorFlow: `testErrorCodeWithNoNodeDef`: errors of no node have a code and name none.
#[test]
fn error_code_with_no_node_def() {
    let g = Graph::new();
    let x = g.constant(1.0f32);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let foreign = session.run(&[], Graph::new().constant(1.0f32)).unwrap_err();
    assert_eq!((foreign.kind(), foreign.node()), (ErrorKind::InvalidArgument, None));
    session.close();
    let closed = session.run(&[], &x).unwrap_err();
    assert_eq!((closed.kind(), closed.node()), (ErrorKind::FailedPrecondition, None));
    assert!(closed.location().is_none() && closed.device().is_none());
}

/// TensorFlow: `testErrorBasedOn`: whatever was built upon a refused operation, the error is of that one.
#[test]
fn error_based_on() {
    let g = Graph::new();
    let a = g.scope("first", || g.constant([[0.0f32; 2]; 3]));
    let refused = g.scope("second", || a.matmul(&a));
    let v = g.variable("v", Init::Zeros, F32, []);
    let built = g.scope("third", || refused.softmax(-1).identity().sum(()));
    let step = Sgd::new(0.1).minimize(&(&built * &v));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let errors = [session.run(&[], &built).unwrap_err(), session.run(&[], &step).unwrap_err()];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert_eq!(error.node(), Some("second/matmul"), "{error}");
        assert!(error.location().unwrap().file().ends_with("errors.rs"), "{error}");
    }
}

/// Writes nothing into its output.
#[derive(Debug, Clone)]
struct Darth;

impl Op for Darth {
    fn name(&self) -> &str {
        "darth"
    }

    fn infer(&self, inputs: &[Fact]) -> Result<Facts, OpError> {
        Ok([inputs[0].clone()].into())
    }

    fn eval(&self, _: &[HostTensor]) -> Result<Values, OpError> {
        Ok(Values::new())
    }

    fn gradient(&self, _: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![None]
    }

    fn class(&self) -> Class<'_> {
        Class::Custom(Arc::new(Self))
    }

    fn encode(&self) -> Option<convoke::Attributes> {
        None
    }
}

impl CustomKernel for Darth {
    fn cpu(&self, _: &[TensorView<'_>], _: &mut [TensorViewMut<'_>]) -> convoke::Result<()> {
        Ok(())
    }

    fn wgsl(&self, _: &KernelShapes) -> Option<Wgsl> {
        None
    }

    fn flops(&self, _: &KernelShapes) -> u64 {
        1
    }
}

/// TensorFlow: `DarthKernel`. There, a kernel may set no output, which is an internal error; here it is given memory to
/// write to, which no other session has written to.
#[test]
fn darth_kernel() {
    let secret = 0x5ec2e7u32 as f32;
    let n = 1 << 16;
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![n]);
    let noise = &x * 1.0;
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    for _ in 0..3 {
        session.run(&[x.feed(vec![secret; n])], &noise).unwrap();
    }
    drop(session);
    let h = Graph::new();
    let x = h.placeholder("x", F32, dims![n]);
    let y = x.apply(Darth, &[&x]);
    let session = Session::new(&h, &Devices::cpu()).unwrap();
    let y = session.run(&[x.feed(vec![1.0f32; n])], &y).unwrap();
    assert!(y.to_vec::<f32>().unwrap().iter().all(|&y| y != secret));
}

/// An error of a run names the operation, where it ran and where it was built.
#[test]
fn errors_of_runs_name_node_device_and_line() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", F32, dims![4]);
        let i = g.placeholder("i", I32, dims![]);
        let line = line!() + 1;
        let y = g.device(if device.name == "CPU" { "CPU:0" } else { "GPU:0" }, || x.gather(&i, 0));
        let session = device.session(&g);
        let feeds = [x.feed([1.0f32, 2.0, 3.0, 4.0]), i.feed(4)];
        let error = session.run(&feeds, &y).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert_eq!(error.node(), Some("gather"), "{error}");
        assert!(error.device().is_some(), "{error}");
        let at = error.location().unwrap();
        assert!(at.file().ends_with("errors.rs") && at.line() == line, "{error}");
        let error = session.run(&[x.feed([1.0f32]), i.feed(0)], &y).unwrap_err();
        assert_eq!(error.node(), Some("x:0"), "{error}");
        assert!(error.location().is_some(), "{error}");
    }
}

/// So do errors of what the host does between programs: assertions, branches, functions, queues.
#[test]
fn errors_of_the_host_name_it() {
    for device in devices() {
        let g = Graph::new();
        let p = g.placeholder("p", Bool, dims![]);
        let queue = g.fifo_queue("queue", 1, [(F32, dims![])]);
        let check = g.assert(&p, "p is to hold", &[]);
        let function = |_: &[HostTensor]| Err(convoke::Error::new(ErrorKind::DataLoss, "no data"));
        let called = g.host_function("called", &[&p], [(F32, dims![])], function).remove(0);
        let session = device.session(&g);
        session.run(&[], queue.close()).unwrap();
        let failed = |error: convoke::Error, node: &str| {
            assert_eq!((error.node(), error.device()), (Some(node), Some("CPU:0")), "{error}");
            assert!(error.location().is_some_and(|at| at.file().ends_with("errors.rs")), "{error}");
        };
        failed(session.run(&[p.feed(false)], &check).unwrap_err(), &check.name());
        failed(session.run(&[p.feed(false)], &called).unwrap_err(), "called");
        let taken = queue.dequeue();
        let error = session.run(&[], &taken).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfRange, "{error}");
        failed(error, &taken[0].operation().name());
    }
}

/// A file that the system does not let this process read, whoever that is.
#[cfg(unix)]
fn unreadable(folder: &Folder) -> String {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.path().join("locked");
    fs::write(&path, "1").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o0)).unwrap();
    // Not even root reads these.
    let write_only = ["/proc/sys/vm/compact_memory", "/proc/sys/net/ipv4/route/flush"];
    let paths = [path.to_str().unwrap()].into_iter().chain(write_only).map(str::to_owned);
    let is_locked = |path: &String| {
        File::open(path).is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied)
    };
    paths.into_iter().find(is_locked).expect("this process may read everything")
}

/// A reader and a restore say that it is a matter of rights, and nothing has changed.
#[cfg(unix)]
#[test]
fn files_that_may_not_be_read_are_permission_denied() {
    let folder = Folder::new("rights");
    let locked = unreadable(&folder);
    let g = Graph::new();
    let files = g.fifo_queue("files", 9, [(Strings, dims![])]);
    let v = g.variable("v", Init::Zeros, F32, []);
    let name = g.placeholder("name", Strings, dims![]);
    let put = files.enqueue(&[&name]);
    let (_, text) = g.whole_file_reader("reader").read(&files);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    let of_file = HostTensor::strings(&[], [locked.as_bytes()]).unwrap();
    session.run(&[name.feed(of_file)], &put).unwrap();
    let digest = session.state_digest().unwrap();
    let read = session.run(&[], (&text, v.assign_add(1.0))).unwrap_err();
    assert_eq!(read.kind(), ErrorKind::PermissionDenied, "{read}");
    let restored = session.restore(&locked).unwrap_err();
    assert_eq!(restored.kind(), ErrorKind::PermissionDenied, "{restored}");
    assert_eq!(session.state_digest().unwrap(), digest);
}

/// What is there is left as it is.
#[test]
fn a_file_that_is_there_already_exists() {
    let folder = Folder::new("there");
    let path = folder.path().join("records");
    TfRecordWriter::create_new(&path, Compression::None).unwrap().write(b"one").unwrap();
    let before = fs::read(&path).unwrap();
    let error = TfRecordWriter::create_new(&path, Compression::None).expect_err("an error");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

/// The page on errors has all kinds, which are TensorFlow's 16.
#[test]
fn each_kind_is_on_the_page() {
    let page = include_str!("../../../docs/errors.md");
    let rows: Vec<&str> = page.lines().filter_map(|l| l.strip_prefix("| `")).collect();
    let names: Vec<&str> = rows.iter().filter_map(|row| Some(row.split_once('`')?.0)).collect();
    use ErrorKind::{
        Aborted, AlreadyExists, Cancelled, DataLoss, DeadlineExceeded, FailedPrecondition,
        Internal, InvalidArgument, NotFound, OutOfRange, PermissionDenied, ResourceExhausted,
        Unauthenticated, Unavailable, Unimplemented, Unknown,
    };
    let kinds = [
        Cancelled,
        Unknown,
        InvalidArgument,
        DeadlineExceeded,
        NotFound,
        AlreadyExists,
        PermissionDenied,
        Unauthenticated,
        ResourceExhausted,
        FailedPrecondition,
        Aborted,
        OutOfRange,
        Unimplemented,
        Internal,
        Unavailable,
        DataLoss,
    ];
    assert_eq!(names, kinds.map(|kind| format!("{kind:?}")));
}
