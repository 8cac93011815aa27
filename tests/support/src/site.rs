//! A directory that busybox serves: an ordinary program with files, as users have them.

use std::path::{Path, PathBuf};

/// The web server of Debian's busybox-static, as it is.
pub fn busybox() -> PathBuf {
    let path = PathBuf::from("/bin/busybox");
    assert!(
        path.is_file(),
        "this test serves files with busybox, which is not here; on Debian install busybox-static"
    );
    path
}

/// The manifest of a function `site` that serves `public` with it. `function` is more of `[function]`.
pub fn busybox_site(function: &str) -> String {
    let busybox = busybox();
    format!(
        "schema = 1\n[function]\nname = \"site\"\n{function}\
         args = [\"httpd\", \"-i\", \"-h\", \"/www\"]\ninetd = true\n\
         [build]\ncommand = \"cp -f {} site\"\noutput = \"site\"\n\
         [files]\n\"/www\" = \"public\"\n",
        busybox.display()
    )
}

/// Writes a file of a project, with the directories above it.
pub fn write(path: &Path, text: &str) {
    let parent = path.parent().unwrap_or(path);
    std::fs::create_dir_all(parent)
        .and_then(|()| std::fs::write(path, text))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
