//! The smallest function there is: an HTTP server of 176 bytes, with which `holm doctor` tries a real
//! machine, and beside which other programs are measured. Written down byte by byte, so that nothing needs a
//! compiler for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use holm_model::bundle::Files;
use holm_model::program::Program;

use crate::{
    Failure, GuestConfig, Hypervisor, Limits, Request, Slot, Snapshot, Step, VmmError, prepare,
};

/// Far more than it needs, even on an emulated machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Least memory of a guest for it.
pub const MEMORY_BYTES: u64 = 4 << 20;

/// Where the program is linked; its one segment holds headers, code and data.
const BASE: u64 = 0x40_0000;
const HEADER_BYTES: usize = 64 + 56;

/// `socket`, `bind` to port 8080, `listen`; then for ever `accept`, `read`, `write`, `close`.
const CODE: [u8; 124] = [
    0x48, 0x81, 0xec, 0x00, 0x10, 0x00, 0x00, // sub  rsp, 4096
    0xbf, 0x02, 0x00, 0x00, 0x00, // mov  edi, AF_INET
    0xbe, 0x01, 0x00, 0x00, 0x00, // mov  esi, SOCK_STREAM
    0x31, 0xd2, // xor  edx, edx
    0xb8, 0x29, 0x00, 0x00, 0x00, // mov  eax, SYS_socket
    0x0f, 0x05, // syscall
    0x89, 0xc3, // mov  ebx, eax
    0x89, 0xdf, // mov  edi, ebx
    0x48, 0x8d, 0x35, 0x57, 0x00, 0x00, 0x00, // lea  rsi, [rip + ADDRESS]
    0xba, 0x10, 0x00, 0x00, 0x00, // mov  edx, 16
    0xb8, 0x31, 0x00, 0x00, 0x00, // mov  eax, SYS_bind
    0x0f, 0x05, // syscall
    0x89, 0xdf, // mov  edi, ebx
    0xbe, 0x01, 0x00, 0x00, 0x00, // mov  esi, 1
    0xb8, 0x32, 0x00, 0x00, 0x00, // mov  eax, SYS_listen
    0x0f, 0x05, // syscall
    0x89, 0xdf, // next: mov  edi, ebx
    0x31, 0xf6, // xor  esi, esi
    0x31, 0xd2, // xor  edx, edx
    0xb8, 0x2b, 0x00, 0x00, 0x00, // mov  eax, SYS_accept
    0x0f, 0x05, // syscall
    0x89, 0xc5, // mov  ebp, eax
    0x89, 0xef, // mov  edi, ebp
    0x48, 0x89, 0xe6, // mov  rsi, rsp
    0xba, 0x00, 0x10, 0x00, 0x00, // mov  edx, 4096
    0x31, 0xc0, // xor  eax, eax (SYS_read)
    0x0f, 0x05, // syscall
    0x89, 0xef, // mov  edi, ebp
    0x48, 0x8d, 0x35, 0x27, 0x00, 0x00, 0x00, // lea  rsi, [rip + ANSWER]
    0xba, 0x24, 0x00, 0x00, 0x00, // mov  edx, 36
    0xb8, 0x01, 0x00, 0x00, 0x00, // mov  eax, SYS_write
    0x0f, 0x05, // syscall
    0x89, 0xef, // mov  edi, ebp
    0xb8, 0x03, 0x00, 0x00, 0x00, // mov  eax, SYS_close
    0x0f, 0x05, // syscall
    0xeb, 0xc3, // jmp  next
];

/// `sockaddr_in`: `AF_INET`, port 8080, any address.
const ADDRESS: [u8; 16] = [2, 0, 0x1f, 0x90, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const ANSWER: &[u8; 36] = b"HTTP/1.1 204 \r\nConnection: close\r\n\r\n";
/// The status in [`ANSWER`].
const STATUS: u16 = 204;

/// Its snapshot, with as much memory as is said.
pub fn snapshot(hypervisor: &Hypervisor, memory_bytes: u64) -> Result<Arc<Snapshot>, Failure> {
    let program = Program::parse(&program())
        .map_err(|_| VmmError::Misuse("the sample is no program that Holm takes"))?;
    let config = GuestConfig {
        name: "sample".to_owned(),
        memory_bytes: memory_bytes.max(MEMORY_BYTES),
        env: Vec::new(),
        args: Vec::new(),
        files: Files::default(),
        inetd: false,
        shared: false,
        port: 8080,
    };
    let prepared = prepare(hypervisor, &program, &config, PATIENCE);
    prepared
        .map(|prepared| prepared.snapshot)
        .map_err(|error| error.failure)
}

/// Sends an instance of it a request, and checks the answer.
pub fn send(slot: &mut Slot) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    let limits = Limits {
        deadline,
        cpu: PATIENCE,
        response_body_bytes: 0,
        streams: false,
    };
    let headers: [(&[u8], &[u8]); 1] = [(b"host", b"sample")];
    let request = Request {
        method: "GET",
        target: "/",
        headers: &headers,
        body: &[],
    };
    slot.begin(&request, limits)?;
    loop {
        match slot.run(PATIENCE) {
            Step::Answered(response) if response.status == STATUS => return Ok(()),
            Step::Answered(_) => {
                return Err(VmmError::Misuse("the sample gave another answer than its own").into());
            }
            Step::Failed(failure) | Step::Dropped(_, failure) => return Err(failure),
            Step::Yielded => {}
            Step::Parked(until) => slot.wait(until.min(deadline)),
        }
    }
}

/// The program as an ELF file.
fn program() -> Vec<u8> {
    let total = (HEADER_BYTES + CODE.len() + ADDRESS.len() + ANSWER.len()) as u64;
    let entry = BASE + HEADER_BYTES as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // ET_EXEC, EM_X86_64, version 1; entry, program headers at 64, no sections.
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [entry, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    // No flags; header of 64 bytes, one program header of 56.
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    // PT_LOAD, readable and executable, the whole file.
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for word in [0, BASE, BASE, total, total, 4096] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(CODE);
    elf.extend(ADDRESS);
    elf.extend(ANSWER);
    elf
}

#[cfg(test)]
mod tests {
    use super::*;
    use holm_model::program::Program;

    #[test]
    fn the_probe_is_a_program_that_holm_takes() {
        let bytes = program();
        let program = Program::parse(&bytes).unwrap();
        assert_eq!(program.entry, BASE + 120);
        assert!(program.least_memory_bytes() <= 4 << 20);
    }

    #[test]
    fn the_probes_code_refers_to_its_data() {
        // The displacements count from the end of their instruction.
        let at = |offset: usize| u32::from_le_bytes(CODE[offset..][..4].try_into().unwrap());
        assert_eq!(0x25 + at(0x21) as usize, CODE.len());
        assert_eq!(0x65 + at(0x61) as usize, CODE.len() + ADDRESS.len());
        assert_eq!(at(0x66) as usize, ANSWER.len());
    }
}
