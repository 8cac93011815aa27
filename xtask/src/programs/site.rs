//! A site for busybox's web server: on the host a directory, in a guest files of the artifact.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use holm_model::bundle::{Collected, Files};

use super::{Ask, get};

/// What is asked of it.
pub(crate) const ASKS: &[Ask] = &[
    get("/"),
    get("/long.bin"),
    get("/pages/77.txt"),
    get("/pages/absent.txt"),
    get("/pages/"),
    get("/pages"),
];
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

/// The same files in a directory and as those of an artifact.
pub(crate) struct Site {
    directory: PathBuf,
    pub(crate) files: Files,
}

impl Site {
    /// Writes the directory, below `out`.
    pub(crate) fn make(out: &Path) -> Result<Site> {
        let directory = out.join("site");
        let mut collected = Collected::default();
        let mut put = |path: &str, content: Vec<u8>| -> Result<()> {
            let there = directory.join(path);
            let parent = there.parent().context("it lies in a directory")?;
            fs::create_dir_all(parent)
                .and_then(|()| fs::write(&there, &content))
                .with_context(|| format!("cannot write {}", there.display()))?;
            collected.file(format!("/www/{path}").as_bytes(), false, content)?;
            Ok(())
        };
        put("index.html", b"<p>welcome</p>\n".to_vec())?;
        put(
            "long.bin",
            (0..300_000u32).map(|n| (n % 251) as u8).collect(),
        )?;
        for page in 0..PAGES {
            put(
                &format!("pages/{page}.txt"),
                format!("page {page}\n").into_bytes(),
            )?;
        }
        Ok(Site {
            files: collected.finish()?,
            directory,
        })
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

    /// And in a guest, as under inetd; the program's name first.
    pub(crate) fn in_guest() -> Vec<String> {
        ["busybox", "httpd", "-i", "-h", "/www"]
            .map(str::to_owned)
            .to_vec()
    }
}
