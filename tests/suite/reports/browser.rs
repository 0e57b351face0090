//! Opens pages in the browser that `CONVOKE_TEST_BROWSER` names; `cargo xtask test` sets it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a page may take, from the start of the browser to its end.
const LIMIT: Duration = Duration::from_secs(120);

/// A page in a folder of its own, which goes away with it.
pub struct Page(PathBuf);

impl Page {
    pub fn new(html: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("convoke-page-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("page.html"), html).unwrap();
        Self(dir)
    }

    /// The page's elements as text, after its script has run; `None` if there is no browser.
    pub fn open(&self, fragment: &str) -> Option<String> {
        let Some(browser) = std::env::var_os("CONVOKE_TEST_BROWSER") else {
            eprintln!("skipped in a browser: CONVOKE_TEST_BROWSER names none");
            return None;
        };
        // The answer goes to a file, so that it can't fill a pipe.
        let dom = self.0.join("dom.html");
        let mut child = Command::new(&browser)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,900"])
            .args(["--virtual-time-budget=10000", "--dump-dom"])
            .arg(format!("--user-data-dir={}", self.0.join("profile").display()))
            .arg(format!("file://{}{fragment}", self.0.join("page.html").display()))
            .stdout(std::fs::File::create(&dom).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("can't run {}: {e}", Path::new(&browser).display()));
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if start.elapsed() > LIMIT {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("the page took more than {LIMIT:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(status.success(), "the browser ended with {status}");
        Some(std::fs::read_to_string(&dom).unwrap())
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // A process of the browser may still write into its profile.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An attribute of the page's first element.
pub fn attribute<'a>(dom: &'a str, name: &str) -> Option<&'a str> {
    let head = &dom[dom.find("<html")?..];
    let head = &head[..head.find('>')?];
    let (_, rest) = head.split_once(&format!("{name}=\""))?;
    rest.split('"').next()
}
