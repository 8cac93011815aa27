//! The first start of a program: lay out its memory, run it until it waits for a request, take the
//! snapshot.

mod lacking;

use std::fmt;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holm_hostcall::{
    ABI_VERSION, AT_HOLM, BOOT_ADDR, LOG_ADDR, LogHeader, PAGE_BYTES, PROGRAM_ADDR,
    STACK_GUARD_BYTES, boot_flags,
};
use holm_model::bundle::Files;
use holm_model::program::Program;
use kvm_bindings::kvm_regs;

use crate::cpu::{CpuState, GATE_FRAME_ADDR, InterruptFrame};
use crate::hostcall::{Buffer, Offer};
use crate::image::Image;
use crate::layout::{Access, Layout, RANDOM_BYTES, Range};
use crate::machine::Machine;
use crate::memory::{GuestMemory, Sharing, anonymous_file};
use crate::rewrite::{Entries, Stubs};
use crate::runner::{Runner, Stop, monotonic_ns};
use crate::symbols::Symbols;
use crate::{CrashReport, Failure, Hypervisor, RequestPlace, Snapshot, VmmError, cpuid, snapshot};

/// Where a relocatable program is put: where most others are linked to.
const RELOCATED_ADDR: u64 = 0x40_0000;

/// What a guest is given beside its program.
#[derive(Clone)]
pub struct GuestConfig {
    /// `tenant/function` or a file name: the program's `argv[0]` if there are no arguments.
    pub name: String,
    /// The program's arguments, `argv[0]` included.
    pub args: Vec<String>,
    /// The files that it brings.
    pub files: Files,
    /// It finds its caller at its standard input and output, and serves one request.
    pub inetd: bool,
    /// It is kept between requests, and may be given several at a time.
    pub shared: bool,
    /// Program memory.
    pub memory_bytes: u64,
    /// Environment variables, beside `PORT` and `HOLM`.
    pub env: Vec<(String, String)>,
    /// `$PORT`; 8080 unless there is a reason.
    pub port: u16,
}

impl fmt::Debug for GuestConfig {
    /// Values of the environment may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.env.iter().map(|(name, _)| name).collect();
        f.debug_struct("GuestConfig")
            .field("name", &self.name)
            .field("memory_bytes", &self.memory_bytes)
            .field("env", &names)
            .finish_non_exhaustive()
    }
}

/// A program that was booted and reached its first wait for a request.
#[derive(Debug)]
pub struct Prepared {
    /// Its state at that moment.
    pub snapshot: Arc<Snapshot>,
    /// From the vCPU's start to that moment.
    pub ready: Duration,
    /// What the program wrote until then.
    pub log: Vec<u8>,
}

/// A program that did not get so far.
#[derive(Debug, thiserror::Error)]
#[error("{failure}")]
pub struct PrepareError {
    /// Why.
    pub failure: Failure,
    /// What the program wrote until then.
    pub log: Vec<u8>,
}

impl From<VmmError> for PrepareError {
    fn from(error: VmmError) -> Self {
        PrepareError {
            failure: Failure::Host(error),
            log: Vec::new(),
        }
    }
}

/// Boots `program` and snapshots it at its first wait. Blocks for at most `deadline`.
pub fn prepare(
    hypervisor: &Hypervisor,
    program: &Program,
    config: &GuestConfig,
    deadline: Duration,
) -> Result<Prepared, PrepareError> {
    let symbols = Symbols::of_program(&program.bytes, base_of(program));
    let (layout, file, memory, start) = lay_out(program, config)?;

    let mut runner = Runner::new(hypervisor)?;
    cpuid::write_table(&memory, &hypervisor.inner.answers)?;
    runner.machine.attach(memory, layout.pml4())?;
    runner.layout = layout;
    runner.write_moment(0)?;
    runner.machine.set_state(&start);

    let began = Instant::now();
    let wait = loop {
        let failure = match runner.run(deadline, Some(began + deadline), &symbols) {
            Stop::Parked(until) => match runner.offer() {
                Some(Offer { buffer, place }) if place == RequestPlace::FIRST => break buffer,
                Some(_) => Failure::Crash(CrashReport::of(
                    "the program waits for its first request as if it had others",
                )),
                None => {
                    std::thread::sleep(until.saturating_duration_since(Instant::now()));
                    continue;
                }
            },
            Stop::Yielded => continue,
            Stop::Answered(_) | Stop::Dropped(..) => {
                VmmError::Misuse("an answer before a request").into()
            }
            Stop::Failed(Failure::Deadline(place)) => Failure::Crash(CrashReport::of(format!(
                "the program was not ready within {} ms: {}{place}",
                deadline.as_millis(),
                duty(config)
            ))),
            Stop::Failed(failure) => failure,
        };
        let mut log = runner.log.take();
        log.extend_from_slice(lacking::lines(&runner).as_bytes());
        return Err(PrepareError { failure, log });
    };
    let ready = began.elapsed();
    let log = runner.log.take();
    let snapshot = capture(hypervisor, &config.name, &mut runner, file, wait, symbols)?;
    Ok(Prepared {
        snapshot,
        ready,
        log,
    })
}

/// What a program has to do to be ready.
fn duty(config: &GuestConfig) -> String {
    match config.inetd {
        true => "it has to read its request from its standard input".to_owned(),
        false => format!(
            "it has to listen on $PORT ({}) and wait for a connection",
            config.port
        ),
    }
}

/// The whole memory of a guest before its first instruction, for the kernel image's PVH entry.
pub fn machine_image(program: &Program, config: &GuestConfig) -> Result<Vec<u8>, PrepareError> {
    let (_, _, memory, _) = lay_out(program, config)?;
    let mut image = vec![0; memory.bytes() as usize];
    memory.read(0, &mut image)?;
    Ok(image)
}

/// A guest's memory before its first instruction, the file behind it, and the vCPU's state.
fn lay_out(
    program: &Program,
    config: &GuestConfig,
) -> Result<(Layout, File, GuestMemory, CpuState), PrepareError> {
    let base = base_of(program);
    let files_bytes = config.files.bytes().len() as u64;
    let layout = Layout::new(
        base + program.start_page(),
        config.memory_bytes,
        files_bytes,
    );
    let file = anonymous_file(layout.total_bytes())?;
    let memory = GuestMemory::map(&file, 0, layout.total_bytes(), Sharing::Shared)?;
    let start = load(&memory, &layout, program, base, config)?;
    Ok((layout, file, memory, start))
}

/// What a program's addresses are moved by.
fn base_of(program: &Program) -> u64 {
    match program.relocatable {
        true => RELOCATED_ADDR.next_multiple_of(program.align.max(1)),
        false => 0,
    }
}

/// Takes the state of a guest that has just made its first wait.
fn capture(
    hypervisor: &Hypervisor,
    name: &str,
    runner: &mut Runner,
    file: File,
    wait: Buffer,
    symbols: Symbols,
) -> Result<Arc<Snapshot>, VmmError> {
    let state = state_behind_gate(&runner.machine)?;
    // What was refused so far has not kept the program from being ready.
    runner
        .machine
        .memory()?
        .zero(LOG_ADDR, size_of::<LogHeader>() as u64)?;
    snapshot::write_since(runner.machine.memory()?, monotonic_ns())?;
    // Nothing writes the memory from here on.
    runner.machine.detach()?;
    Snapshot::capture(hypervisor, name, file, runner.layout, state, wait, symbols)
}

/// The state in which a guest goes on after the hostcall that it has just made.
fn state_behind_gate(machine: &Machine) -> Result<CpuState, VmmError> {
    machine.state_after(&InterruptFrame::read(machine.memory()?, GATE_FRAME_ADDR)?)
}

/// A program whose segments do not fit its memory is the publisher's mistake.
fn does_not_fit(config: &GuestConfig, segments_bytes: u64) -> PrepareError {
    let body = segments_bytes.next_multiple_of(PAGE_BYTES) + STACK_GUARD_BYTES;
    // The stack grows with the memory, by an eighth of it, so this ends.
    let mut needed = body;
    while body + Layout::new(PROGRAM_ADDR, needed, 0).stack_bytes() > needed {
        needed = body + Layout::new(PROGRAM_ADDR, needed, 0).stack_bytes();
    }
    let what = format!(
        "the program does not fit its memory: with its stack it needs {needed} bytes, [limits] memory \
         is {}",
        config.memory_bytes
    );
    PrepareError {
        failure: Failure::Crash(CrashReport::of(what)),
        log: Vec::new(),
    }
}

/// Writes everything into a guest's memory that has to be there before it runs; gives the vCPU's
/// state at the start.
fn load(
    memory: &GuestMemory,
    layout: &Layout,
    program: &Program,
    base: u64,
    config: &GuestConfig,
) -> Result<CpuState, PrepareError> {
    let image = Image::get();
    image.load(memory)?;
    let stack_start = layout.program_end() - layout.stack_bytes();
    let mut stubs = Stubs::new(Entries::of(image));
    let mut ranges = Vec::new();
    let mut brk_start = layout.program_start;
    for segment in &program.segments {
        let start = base + segment.addr;
        let end = start
            .checked_add(segment.memory_bytes)
            .and_then(|end| end.checked_next_multiple_of(PAGE_BYTES))
            .filter(|end| start >= PROGRAM_ADDR && *end <= stack_start - STACK_GUARD_BYTES)
            .ok_or_else(|| {
                let top = base
                    .saturating_add(segment.addr)
                    .saturating_add(segment.memory_bytes);
                does_not_fit(config, top.saturating_sub(layout.program_start))
            })?;
        match segment.execute {
            true => {
                let mut code = program.segment_bytes(segment).to_vec();
                stubs.rewrite(&mut code, start);
                memory.write(start, &code)?;
            }
            false => memory.write(start, program.segment_bytes(segment))?,
        }
        let access = match (segment.write, segment.execute) {
            (_, true) => Access::Execute,
            (true, false) => Access::Write,
            (false, false) => Access::Read,
        };
        ranges.push(Range {
            start: start - start % PAGE_BYTES,
            end,
            access,
        });
        brk_start = brk_start.max(end);
    }
    ranges.push(Range {
        start: stack_start - STACK_GUARD_BYTES,
        end: stack_start,
        access: Access::None,
    });
    let mut kernel = stubs.load(memory)?;
    kernel.extend(image.ranges());
    layout.write_page_tables(memory, &kernel, &ranges)?;
    layout.write_cpu_tables(memory)?;
    memory.write(layout.files(), config.files.bytes())?;

    let stack_pointer = write_stack(memory, layout, program, base, image, config)?;
    let mut boot = Vec::new();
    boot.extend_from_slice(&ABI_VERSION.to_le_bytes());
    let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
    let flags = flag(config.inetd, boot_flags::INETD)
        | flag(config.shared, boot_flags::SHARED)
        | flag(program.executable_stack, boot_flags::EXECUTABLE_STACK);
    boot.extend_from_slice(&flags.to_le_bytes());
    // Generation, seed and clock are written for every start.
    boot.extend_from_slice(&[0; 72]);
    let entry = base + program.entry;
    for word in [
        layout.program_bytes,
        brk_start,
        entry,
        stack_pointer,
        stack_start,
    ] {
        boot.extend_from_slice(&word.to_le_bytes());
    }
    boot.extend_from_slice(&u32::from(config.port).to_le_bytes());
    boot.extend_from_slice(&0u32.to_le_bytes());
    for word in [
        layout.program_start,
        layout.tables,
        layout.pointers(),
        layout.sparse_directories(),
        layout.sparse_tables(),
        layout.sparse_table_count(),
        layout.files(),
        layout.files_bytes,
    ] {
        boot.extend_from_slice(&word.to_le_bytes());
    }
    debug_assert_eq!(boot.len(), size_of::<holm_hostcall::BootPage>());
    memory.write(BOOT_ADDR, &boot)?;

    let regs = kvm_regs {
        rip: image.entry,
        rflags: 0x202,
        ..Default::default()
    };
    Ok(regs.into())
}

/// The stack of a new program (System V ABI for AMD64, 3.4.1): strings, auxiliary vector, environment,
/// arguments. Gives the stack pointer.
fn write_stack(
    memory: &GuestMemory,
    layout: &Layout,
    program: &Program,
    base: u64,
    image: &Image,
    config: &GuestConfig,
) -> Result<u64, PrepareError> {
    const AT_PHDR: u64 = 3;
    const AT_PHENT: u64 = 4;
    const AT_PHNUM: u64 = 5;
    const AT_PAGESZ: u64 = 6;
    const AT_BASE: u64 = 7;
    const AT_FLAGS: u64 = 8;
    const AT_ENTRY: u64 = 9;
    const AT_UID: u64 = 11;
    const AT_EUID: u64 = 12;
    const AT_GID: u64 = 13;
    const AT_EGID: u64 = 14;
    const AT_PLATFORM: u64 = 15;
    const AT_HWCAP: u64 = 16;
    const AT_CLKTCK: u64 = 17;
    const AT_SECURE: u64 = 23;
    const AT_RANDOM: u64 = 25;
    const AT_HWCAP2: u64 = 26;
    const AT_EXECFN: u64 = 31;
    const AT_SYSINFO_EHDR: u64 = 33;
    /// User mode may use WRFSBASE and its kin.
    const HWCAP2_FSGSBASE: u64 = 1 << 1;

    let mut top = layout.program_end();
    let mut push = |bytes: &[u8]| -> Result<u64, VmmError> {
        top -= bytes.len() as u64;
        memory.write(top, bytes)?;
        Ok(top)
    };
    // Filled in at every start.
    let random = push(&[0; RANDOM_BYTES as usize])?;
    let platform = push(b"x86_64\0")?;
    let text = |text: &str| [text.as_bytes(), b"\0"].concat();
    let name = push(&text(&config.name))?;
    let fixed = [
        ("PORT", config.port.to_string()),
        ("HOLM", "1".into()),
        ("HOME", "/".into()),
    ];
    let fixed = fixed.iter().map(|(key, value)| (*key, value.as_str()));
    let own = config
        .env
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()));
    let room = layout.stack_bytes() / 4;
    let mut used = 0;
    let mut push_counted = |text: &[u8]| {
        used += text.len() as u64 + 8;
        if used > room {
            let what = format!(
                "arguments and environment are larger than a quarter of the program's stack ({room} \
                 bytes): shorten `args` or [env], or raise [limits] memory"
            );
            return Err(PrepareError {
                failure: Failure::Crash(CrashReport::of(what)),
                log: Vec::new(),
            });
        }
        Ok(push(text)?)
    };
    let mut words = vec![config.args.len().max(1) as u64];
    for argument in &config.args {
        words.push(push_counted(&text(argument))?);
    }
    if config.args.is_empty() {
        words.push(name);
    }
    words.push(0);
    for (key, value) in fixed.chain(own) {
        words.push(push_counted(&text(&format!("{key}={value}")))?);
    }
    words.push(0);
    let auxiliary = [
        (AT_PHDR, base + program.headers_addr),
        (AT_PHENT, 56),
        (AT_PHNUM, u64::from(program.headers_count)),
        (AT_PAGESZ, PAGE_BYTES),
        (AT_BASE, 0),
        (AT_FLAGS, 0),
        (AT_ENTRY, base + program.entry),
        (AT_UID, 0),
        (AT_EUID, 0),
        (AT_GID, 0),
        (AT_EGID, 0),
        (AT_PLATFORM, platform),
        (AT_HWCAP, u64::from(core::arch::x86_64::__cpuid(1).edx)),
        (AT_HWCAP2, HWCAP2_FSGSBASE),
        (AT_CLKTCK, 100),
        (AT_SECURE, 0),
        (AT_RANDOM, random),
        (AT_EXECFN, name),
        (AT_SYSINFO_EHDR, image.vdso),
        (AT_HOLM, image.door),
        (0, 0),
    ];
    for (kind, value) in auxiliary {
        words.extend_from_slice(&[kind, value]);
    }
    let stack_pointer = (top - words.len() as u64 * 8) & !15;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    memory.write(stack_pointer, &bytes)?;
    Ok(stack_pointer)
}
