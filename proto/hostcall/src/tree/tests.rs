extern crate std;

use std::vec;
use std::vec::Vec;

use super::*;
use crate::message::Sink;

struct All(Vec<u8>);

impl Sink for All {
    fn put(&mut self, bytes: &[u8]) -> bool {
        self.0.extend_from_slice(bytes);
        true
    }
}

fn file<'a>(path: &'a str, content: &'a [u8]) -> Source<'a> {
    Source {
        path: path.as_bytes(),
        kind: Kind::File,
        executable: false,
        modified_s: 7,
        content,
    }
}

fn directory(path: &str) -> Source<'_> {
    Source {
        kind: Kind::Directory,
        ..file(path, b"")
    }
}

fn link<'a>(path: &'a str, to: &'a str) -> Source<'a> {
    Source {
        kind: Kind::Link,
        ..file(path, to.as_bytes())
    }
}

fn encoded(sources: &[Source<'_>]) -> Result<Vec<u8>, TreeError> {
    let mut sorted = sources.to_vec();
    sorted.sort_by(|one, other| order(one.path, other.path));
    let mut all = All(Vec::new());
    encode(&mut all, &sorted)?;
    Ok(all.0)
}

fn sample() -> Vec<u8> {
    encoded(&[
        directory("/"),
        directory("/www"),
        file("/www-old", b"not in /www"),
        directory("/www/a"),
        file("/www/a/deep.txt", b"deep"),
        directory("/www/empty"),
        file("/www/index.html", b"<p>hello</p>\n"),
        file("/www/nothing", b""),
        link("/www/other", "a/deep.txt"),
        Source {
            executable: true,
            ..file("/www/run", &[b'x'; 5000])
        },
    ])
    .unwrap()
}

#[test]
fn what_was_put_in_is_found_again_and_nothing_else_is() {
    let bytes = sample();
    let tree = Tree::check(&bytes).unwrap();
    let content = |path: &str| {
        let entry = tree.entry(tree.find(path.as_bytes())?)?;
        assert_eq!(entry.path, path.as_bytes());
        Some(tree.content(&entry))
    };
    assert_eq!(content("/www/index.html"), Some(&b"<p>hello</p>\n"[..]));
    assert_eq!(content("/www/a/deep.txt"), Some(&b"deep"[..]));
    assert_eq!(content("/www-old"), Some(&b"not in /www"[..]));
    assert_eq!(content("/www/other"), Some(&b"a/deep.txt"[..]));
    assert_eq!(content("/www/nothing"), Some(&b""[..]));
    assert_eq!(content("/www/run").unwrap().len(), 5000);
    let run = tree.entry(tree.find(b"/www/run").unwrap()).unwrap();
    assert!(run.executable && run.kind == Kind::File && run.modified_s == 7);
    assert!(tree.has_links() && tree.count() == 10);
    for absent in ["", "www", "/www/", "/www/a/dee", "/www/a/deep.txtx", "/x"] {
        assert_eq!(content(absent), None, "{absent}");
    }
}

#[test]
fn a_directory_lists_what_lies_in_it_in_order() {
    let bytes = sample();
    let tree = Tree::check(&bytes).unwrap();
    let names = |path: &str| -> Vec<Vec<u8>> {
        let entry = tree.entry(tree.find(path.as_bytes()).unwrap()).unwrap();
        tree.children(&entry)
            .map(|index| tree.entry(index).unwrap().name().to_vec())
            .collect()
    };
    assert_eq!(names("/"), [&b"www"[..], b"www-old"]);
    assert_eq!(
        names("/www"),
        [
            &b"a"[..],
            b"empty",
            b"index.html",
            b"nothing",
            b"other",
            b"run"
        ]
    );
    assert_eq!(names("/www/a"), [b"deep.txt"]);
    assert!(names("/www/empty").is_empty() && names("/www/run").is_empty());
}

#[test]
fn a_content_lies_in_as_few_pages_as_it_can() {
    let bytes = sample();
    let tree = Tree::check(&bytes).unwrap();
    for index in 0..tree.count() {
        let entry = tree.entry(index).unwrap();
        if entry.kind == Kind::File && entry.bytes > 0 {
            let pages = (entry.start + entry.bytes - 1) / PAGE_BYTES - entry.start / PAGE_BYTES + 1;
            assert_eq!(pages, entry.bytes.div_ceil(PAGE_BYTES), "{:?}", entry.path);
        }
    }
}

#[test]
fn five_thousand_files_are_found_and_take_little_more_than_their_bytes() {
    let mut paths: Vec<std::string::String> = vec!["/".into(), "/www".into()];
    for number in 0..50 {
        paths.push(std::format!("/www/{number}"));
        paths.extend((0..100).map(|file| std::format!("/www/{number}/{file}.txt")));
    }
    let sources: Vec<Source<'_>> = paths
        .iter()
        .map(|path| match path.ends_with(".txt") {
            true => file(path, path.as_bytes()),
            false => directory(path),
        })
        .collect();
    let bytes = encoded(&sources).unwrap();
    assert!(bytes.len() < 500_000, "{}", bytes.len());
    let tree = Tree::check(&bytes).unwrap();
    for path in &paths {
        let entry = tree.entry(tree.find(path.as_bytes()).unwrap()).unwrap();
        if entry.kind == Kind::File {
            assert_eq!(tree.content(&entry), path.as_bytes());
        }
    }
}

#[test]
fn what_breaks_a_rule_is_not_encoded() {
    let root = directory("/");
    let long = std::format!("/{}", "x".repeat(256));
    for (sources, error) in [
        (vec![], None),
        (vec![root, file("/a/b", b"")], Some(TreeError::NoDirectory)),
        (
            vec![root, file("/a", b""), file("/a", b"")],
            Some(TreeError::Disordered),
        ),
        (
            vec![root, file("/a", b""), file("/a/b", b"")],
            Some(TreeError::NoDirectory),
        ),
        (vec![file("/a", b"")], Some(TreeError::NoDirectory)),
        (vec![root, file("a", b"")], Some(TreeError::BadPath)),
        (vec![root, file("/a/../b", b"")], Some(TreeError::BadPath)),
        (vec![root, file("/a/", b"")], Some(TreeError::BadPath)),
        (vec![root, file("/a\0b", b"")], Some(TreeError::BadPath)),
        (vec![root, file(&long, b"")], Some(TreeError::BadPath)),
        (vec![root, directory("/tmp")], Some(TreeError::Reserved)),
        (
            vec![root, directory("/dev"), file("/dev/null", b"")],
            Some(TreeError::Reserved),
        ),
        (vec![root, file("/etc", b"")], Some(TreeError::Reserved)),
        (vec![root, link("/a", "")], Some(TreeError::BadLink)),
        (
            vec![
                root,
                directory("/etc"),
                file("/etc/hosts", b""),
                file("/tmpa", b""),
            ],
            None,
        ),
    ] {
        // Some rules are those of the whole, which only a check sees.
        let result = encoded(&sources).and_then(|bytes| Tree::check(&bytes).map(|_| ()));
        let expected = match sources.is_empty() {
            true => Some(TreeError::Damaged),
            false => error,
        };
        assert_eq!(result.err(), expected, "{sources:?}");
    }
}

#[test]
fn a_damaged_tree_is_refused_and_never_read_outside_of_its_bytes() {
    let good = sample();
    for at in 0..good.len() {
        for bit in [0, 1, 4, 7] {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            if let Ok(tree) = Tree::check(&bad) {
                // Another name, time or content, which only a digest of the whole can tell.
                assert!(encoded_again(&tree) == bad, "byte {at}, bit {bit}");
            }
            use_all(&bad);
        }
    }
    for cut in 0..good.len() {
        assert!(Tree::check(&good[..cut]).is_err(), "cut at {cut}");
        if cut < 2000 {
            use_all(&good[..cut]);
        }
    }
}

fn encoded_again(tree: &Tree<'_>) -> Vec<u8> {
    let sources: Vec<Source<'_>> = (0..tree.count())
        .map(|index| {
            let entry = tree.entry(index).unwrap();
            Source {
                path: entry.path,
                kind: entry.kind,
                executable: entry.executable,
                modified_s: entry.modified_s,
                content: tree.content(&entry),
            }
        })
        .collect();
    let mut all = All(Vec::new());
    encode(&mut all, &sources).unwrap();
    all.0
}

/// Reads whatever can be read, as a guest would that has not checked its tree.
fn use_all(bytes: &[u8]) {
    let Ok(tree) = Tree::open(bytes) else {
        return;
    };
    let _ = tree.find(b"/www/a/deep.txt");
    for index in 0..tree.count().min(1000) {
        if let Some(entry) = tree.entry(index) {
            let _ = (tree.content(&entry), entry.name());
            assert!(tree.children(&entry).all(|child| child < tree.count()));
        }
    }
}

#[test]
fn the_bytes_of_a_tree_are_what_they_were() {
    let bytes = encoded(&[directory("/"), file("/a", b"hi"), link("/b", "a")]).unwrap();
    let mut expected = Vec::new();
    expected.extend_from_slice(b"HOLMTREE");
    expected.extend_from_slice(&[1, 0, 0, 0, 3, 0, 0, 0]);
    for number in [4098u64, 6, 4096] {
        expected.extend_from_slice(&number.to_le_bytes());
    }
    expected.extend_from_slice(&[1, 0, 0, 0]);
    expected.resize(64, 0);
    for (text, path_bytes, kind, start, bytes) in [
        (0u32, 1u16, 2u8, 1u64, 2u64),
        (1, 2, 1, 4096, 2),
        (3, 2, 3, 165, 1),
    ] {
        expected.extend_from_slice(&text.to_le_bytes());
        expected.extend_from_slice(&path_bytes.to_le_bytes());
        expected.extend_from_slice(&[kind, 0]);
        expected.extend_from_slice(&start.to_le_bytes());
        expected.extend_from_slice(&bytes.to_le_bytes());
        expected.extend_from_slice(&[7, 0, 0, 0, 0, 0, 0, 0]);
    }
    expected.extend_from_slice(b"//a/ba");
    expected.resize(4096, 0);
    expected.extend_from_slice(b"hi");
    assert_eq!(
        bytes, expected,
        "trees of deployed artifacts have this form: give another one another VERSION"
    );
}
