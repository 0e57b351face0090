//! Checkpoints: whole or not at all.

use std::path::PathBuf;

use convoke::prelude::*;
use convoke_tests::devices;

fn file(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("convoke-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder.join("model.safetensors")
}

fn model(scale: f64, columns: usize) -> (Graph, Variable) {
    let g = Graph::new();
    let v = g.variable("w", Init::Constant(scale), F32, [2, columns]);
    g.untrained_variable("step", Init::Zeros, I32, []);
    (g, v)
}

#[test]
fn saved_and_restored_on_every_device() {
    for device in devices() {
        let path = file(&device.name);
        let (g, _) = model(3.0, 3);
        let saved = device.session(&g);
        saved.run(&[], g.initializers()).unwrap();
        saved.save(&path).unwrap();
        let (g, v) = model(0.0, 3);
        let other = device.session(&g);
        other.run(&[], g.initializers()).unwrap();
        // A program reads the variable first, so that it has settled on its device.
        assert_eq!(other.run(&[], &(&v * 1.0)).unwrap().to_vec::<f32>().unwrap(), [0.0; 6]);
        other.restore(&path).unwrap();
        assert_eq!(
            other.run(&[], &(&v * 1.0)).unwrap().to_vec::<f32>().unwrap(),
            [3.0; 6],
            "{}",
            device.name
        );
        let folder = path.parent().unwrap();
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 1, "nothing temporary is left");
        std::fs::remove_dir_all(folder).unwrap();
    }
}

#[test]
fn damaged_and_foreign_files_change_nothing() {
    let path = file("damaged");
    let (g, _) = model(3.0, 3);
    let saved = Session::new(&g, &Devices::cpu()).unwrap();
    assert_eq!(saved.save(&path).unwrap_err().kind(), ErrorKind::FailedPrecondition);
    saved.run(&[], g.initializers()).unwrap();
    saved.save(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let (g, v) = model(7.0, 3);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    session.run(&[], g.initializers()).unwrap();
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert_eq!(session.restore(&path).unwrap_err().kind(), ErrorKind::DataLoss, "{length}");
    }
    assert_eq!(
        session.restore(path.with_extension("none")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    std::fs::write(&path, &whole).unwrap();
    let (other, _) = model(1.0, 4);
    let other = Session::new(&other, &Devices::cpu()).unwrap();
    let error = other.restore(&path).unwrap_err();
    assert_eq!((error.kind(), error.node()), (ErrorKind::InvalidArgument, Some("w")));
    let more = Graph::new();
    more.variable("w", Init::Zeros, F32, [2, 3]);
    let fewer = Session::new(&more, &Devices::cpu()).unwrap();
    assert!(fewer.restore(&path).unwrap_err().message().contains("step"));
    assert_eq!(session.run(&[], &v).unwrap().to_vec::<f32>().unwrap(), [7.0; 6]);
    session.restore(&path).unwrap();
    assert_eq!(session.run(&[], &v).unwrap().to_vec::<f32>().unwrap(), [3.0; 6]);
    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
}
