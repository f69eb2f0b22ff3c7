//! An XDP program on an interface: what a user of AF_XDP has there. It lets every frame pass.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Loads it and attaches it, without the help of the interface's driver.
pub fn attach(folder: &Path, interface: &str) -> Result<()> {
    let file = folder.join("pass.o");
    fs::write(&file, object()).with_context(|| format!("write {}", file.display()))?;
    let mut ip = Command::new("ip");
    ip.args(["link", "set", "dev", interface, "xdpgeneric", "obj"]).arg(&file).args(["sec", "xdp"]);
    let output = ip.output().context("run ip")?;
    ensure!(
        output.status.success(),
        "attach an XDP program to {interface}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// A relocatable object as a compiler for BPF makes it: the program, its symbol, and its licence (ELF-64, System V ABI chapter 4).
fn object() -> Vec<u8> {
    // `r0 = XDP_PASS; exit` (Documentation/bpf/standardization/instruction-set.rst).
    let program = [0xb7_u8, 0, 0, 0, 2, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    let names = b"\0.strtab\0.symtab\0xdp\0license\0pass\0";
    let name =
        |text: &str| names.windows(text.len()).position(|there| there == text.as_bytes()).unwrap_or_default() as u32;
    // Nothing, and the function: global, in the section of the program.
    let symbols = [&[0; 24][..], &name("pass").to_le_bytes(), &[GLOBAL_FUNCTION, 0, 3, 0], &words(&[0, 16])].concat();
    let contents = [&names[..], &symbols, &program, b"GPL\0"];

    let mut bytes = vec![0; ELF_HEADER];
    let mut headers = vec![0; SECTION_HEADER];
    let kinds = [
        (".strtab", STRING_TABLE, 0, [0, 0], 0),
        (".symtab", SYMBOL_TABLE, 0, [1, 1], 24),
        ("xdp", PROGRAM_BITS, ALLOCATED | EXECUTABLE, [0, 0], 0),
        ("license", PROGRAM_BITS, ALLOCATED | WRITABLE, [0, 0], 0),
    ];
    for ((section, kind, flags, [link, info], entry), content) in kinds.into_iter().zip(contents) {
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        headers.extend([name(section), kind].iter().flat_map(|word| word.to_le_bytes()));
        headers.extend(words(&[flags, 0, bytes.len() as u64, content.len() as u64]));
        headers.extend([link, info].iter().flat_map(|word: &u32| word.to_le_bytes()));
        headers.extend(words(&[8, entry]));
        bytes.extend(content);
    }
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let header = [
        // 64 bits, least significant byte first, version 1.
        &b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0"[..],
        &halves(&[RELOCATABLE, BPF, 1, 0]),
        &words(&[0, 0, bytes.len() as u64]),
        &[0; 4],
        &halves(&[ELF_HEADER as u16, 0, 0, SECTION_HEADER as u16, kinds.len() as u16 + 1, 1]),
    ]
    .concat();
    bytes[..ELF_HEADER].copy_from_slice(&header);
    [bytes, headers].concat()
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn halves(halves: &[u16]) -> Vec<u8> {
    halves.iter().flat_map(|half| half.to_le_bytes()).collect()
}

const ELF_HEADER: usize = 64;
const SECTION_HEADER: usize = 64;
/// `ET_REL` and `EM_BPF`.
const RELOCATABLE: u16 = 1;
const BPF: u16 = 247;
/// `SHT_PROGBITS`, `SHT_SYMTAB`, `SHT_STRTAB`.
const PROGRAM_BITS: u32 = 1;
const SYMBOL_TABLE: u32 = 2;
const STRING_TABLE: u32 = 3;
/// `SHF_WRITE`, `SHF_ALLOC`, `SHF_EXECINSTR`.
const WRITABLE: u64 = 1;
const ALLOCATED: u64 = 2;
const EXECUTABLE: u64 = 4;
/// `STB_GLOBAL` and `STT_FUNC`.
const GLOBAL_FUNCTION: u8 = 0x12;
