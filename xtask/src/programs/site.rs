//! A site for busybox's web server: on the host a directory, in a guest files of the artifact.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use holm_model::bundle::{Collected, Files};

use super::subjects::{Ask, get};

/// What is asked of it.
pub(crate) const ASKS: &[Ask] = &[
    get("/"),
    get("/long.bin"),
    get("/pages/77.txt"),
    get("/pages/absent.txt"),
    get("/pages/"),
    get("/pages"),
];
/// Its arguments in a guest, as under inetd; the program's name first.
pub(crate) const IN_GUEST: [&str; 5] = ["busybox", "httpd", "-i", "-h", "/www"];
/// Small files beside the others.
const PAGES: usize = 5000;

/// Busybox, as it is in Debian's busybox-static.
pub(crate) fn busybox() -> Result<PathBuf> {
    let path = PathBuf::from("/bin/busybox");
    ensure!(
        path.is_file(),
        "{} is not there; it needs Debian's busybox-static",
        path.display()
    );
    Ok(path)
}

/// Every file's path and content.
fn pages() -> impl Iterator<Item = (String, Vec<u8>)> {
    let long = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    let small =
        (0..PAGES).map(|page| (format!("pages/{page}.txt"), format!("page {page}\n").into()));
    [
        ("index.html".to_owned(), b"<p>welcome</p>\n".to_vec()),
        ("long.bin".to_owned(), long),
    ]
    .into_iter()
    .chain(small)
}

/// The name of its directory.
pub(crate) const DIRECTORY: &str = "site";

/// The site as a directory.
pub(crate) struct Site {
    directory: PathBuf,
}

impl Site {
    /// Writes the directory, below `out`.
    pub(crate) fn make(out: &Path) -> Result<Site> {
        let directory = out.join(DIRECTORY);
        fs::create_dir_all(directory.join("pages"))
            .with_context(|| format!("cannot make {}", directory.display()))?;
        for (path, content) in pages() {
            let there = directory.join(path);
            fs::write(&there, content)
                .with_context(|| format!("cannot write {}", there.display()))?;
        }
        Ok(Site { directory })
    }

    /// The same files as those of an artifact.
    pub(crate) fn files() -> Result<Files> {
        let mut collected = Collected::default();
        for (path, content) in pages() {
            collected.file(format!("/www/{path}").as_bytes(), false, content)?;
        }
        Ok(collected.finish()?)
    }

    /// The arguments with which busybox serves it on the host, forking for each connection.
    pub(crate) fn on_host(&self, port: u16) -> Vec<String> {
        let directory = self.directory.display().to_string();
        [
            "httpd",
            "-f",
            "-p",
            &format!("127.0.0.1:{port}"),
            "-h",
            &directory,
        ]
        .map(str::to_owned)
        .to_vec()
    }
}
