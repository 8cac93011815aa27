use super::*;

/// The least program: one executable segment.
fn program() -> Program {
    let mut elf = Vec::new();
    elf.extend_from_slice(b"\x7fELF\x02\x01\x01");
    elf.resize(16, 0);
    let (entry, at) = (0x40_1000u64, 64u64);
    for half in [2u16, 62] {
        elf.extend_from_slice(&half.to_le_bytes());
    }
    elf.extend_from_slice(&1u32.to_le_bytes());
    for word in [entry, at, 0] {
        elf.extend_from_slice(&word.to_le_bytes());
    }
    elf.extend_from_slice(&0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        elf.extend_from_slice(&half.to_le_bytes());
    }
    for half in [1u32, 5] {
        elf.extend_from_slice(&half.to_le_bytes());
    }
    for word in [0u64, entry, entry, 120, 120, 4096] {
        elf.extend_from_slice(&word.to_le_bytes());
    }
    assert_eq!(elf.len(), 120);
    Program::parse(&elf).unwrap()
}

fn files() -> Files {
    let mut collected = Collected::default();
    collected
        .file(b"/www/index.html", false, b"<p>hello</p>".to_vec())
        .unwrap();
    collected.file(b"/www/run", true, vec![7; 9000]).unwrap();
    collected.link(b"/www/other", b"index.html").unwrap();
    collected.directory(b"/www/empty").unwrap();
    collected.finish().unwrap()
}

#[test]
fn a_program_without_files_is_its_own_artifact() {
    let bytes = Bundle::of(program()).to_bytes().unwrap();
    assert_eq!(bytes, program().bytes);
    let bundle = Bundle::parse(&bytes).unwrap();
    assert!(bundle.files.bytes().is_empty() && bundle.files.count() == 0);
}

#[test]
fn a_bundle_comes_back_as_it_was() {
    let bundle = Bundle {
        program: program(),
        files: files(),
    };
    let bytes = bundle.to_bytes().unwrap();
    let back = Bundle::parse(&bytes).unwrap();
    assert_eq!(back.program.bytes, bundle.program.bytes);
    assert_eq!(back.files.bytes(), bundle.files.bytes());
    assert_eq!(back.files.count(), 6, "with / and /www");
    assert_eq!(back.to_bytes().unwrap(), bytes);
}

#[test]
fn every_part_of_a_bundle_is_checked() {
    let bundle = Bundle {
        program: program(),
        files: files(),
    };
    let good = bundle.to_bytes().unwrap().to_vec();
    for cut in 8..good.len() {
        assert!(Bundle::parse(&good[..cut]).is_err(), "cut at {cut}");
    }
    let mut long = good.clone();
    long.push(0);
    assert!(Bundle::parse(&long).is_err());
    // The head, the padding, and the start of the tree; not the program's own bytes, nor their number,
    // which may say that some of the padding is the program's.
    for at in (0..16).chain(24..64).chain(200..4160) {
        let mut bad = good.clone();
        bad[at] ^= 0x81;
        assert!(Bundle::parse(&bad).is_err(), "byte {at}");
    }
    let mut newer = good.clone();
    newer[8] = 2;
    let error = Bundle::parse(&newer).unwrap_err().to_string();
    assert!(error.contains("another version"), "{error}");
    let error = Bundle::parse(b"#!/bin/sh\n").unwrap_err().to_string();
    assert!(error.contains("not an ELF file"), "{error}");
}

#[test]
fn the_same_files_give_the_same_tree_in_whatever_order_they_come() {
    let mut other = Collected::default();
    other.link(b"/www/other", b"index.html").unwrap();
    other.directory(b"/").unwrap();
    other.file(b"/www/run", true, vec![7; 9000]).unwrap();
    other.directory(b"/www/empty").unwrap();
    other
        .file(b"/www/index.html", false, b"<p>hello</p>".to_vec())
        .unwrap();
    assert_eq!(other.finish().unwrap().bytes(), files().bytes());
}

#[test]
fn a_files_time_changes_with_its_content_and_with_nothing_else() {
    let time = |path: &[u8], content: &[u8]| {
        let mut collected = Collected::default();
        collected.file(path, false, content.to_vec()).unwrap();
        let files = collected.finish().unwrap();
        let tree = files.tree().unwrap();
        tree.entry(tree.find(path).unwrap()).unwrap().modified_s
    };
    assert_eq!(time(b"/a", b"one"), time(b"/b/c", b"one"));
    assert_ne!(time(b"/a", b"one"), time(b"/a", b"two"));
    assert!((EARLIEST..EARLIEST + (1 << 28)).contains(&time(b"/a", b"one")));
    const EARLIEST: u32 = 315_532_800;
}

#[test]
fn what_cannot_be_in_a_tree_is_named_with_its_path() {
    let mut collected = Collected::default();
    collected.file(b"/www/a", false, vec![]).unwrap();
    for (error, part) in [
        (collected.file(b"www", false, vec![]), "`www`"),
        (collected.file(b"/a/../b", false, vec![]), "`/a/../b`"),
        (collected.file(b"/tmp/x", false, vec![]), "`/tmp/x`"),
        (collected.directory(b"/proc"), "`/proc`"),
        (collected.file(b"/www/a", false, vec![]), "`/www/a`"),
        (collected.file(b"/www/a/b", false, vec![]), "`/www/a`"),
        (collected.link(b"/www", b"x"), "`/www`"),
        (collected.link(b"/x", b""), "`/x`"),
        (collected.file(b"/etc", false, vec![]), "`/etc`"),
    ] {
        let text = error.unwrap_err().to_string();
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    assert_eq!(collected.count(), 3, "nothing of that is there");
}
