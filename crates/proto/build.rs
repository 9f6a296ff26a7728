//! Compiles `proto/` with protox, so that a build needs no `protoc`, and keeps the descriptors for server reflection.

use std::error::Error;
use std::path::{Path, PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    // Asked for when it runs: a script that was built in another work tree would read that one's files.
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo::rerun-if-changed={}", root.display());
    let mut files = Vec::new();
    proto_files(&root, &mut files)?;
    files.sort();
    let descriptors = protox::compile(&files, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("logmesh.bin"), descriptors.encode_to_vec())?;
    // `data` of a chunk is shared by the message, the bus record and the bulk: `Bytes` makes that no copy.
    let mut config = tonic_prost_build::Config::new();
    config.bytes([".logmesh.ingest.v1.Chunk.data", ".logmesh.transfer.v1.DeadLetter.document"]);
    // Maps in one order, so that equal messages have equal bytes.
    config.btree_map(["."]);
    tonic_prost_build::configure().codec_path("crate::codec::Codec").compile_fds_with_config(descriptors, config)?;
    Ok(())
}

fn proto_files(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            proto_files(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    Ok(())
}
