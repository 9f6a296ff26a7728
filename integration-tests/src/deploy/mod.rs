//! The files of `deploy/`, run without a container engine: what they say of each container (program, arguments, environment,
//! files, health checks, order) becomes a process on this machine. Nothing is replaced but what an engine would give: host
//! names and ports, and where mounted folders lie.

pub mod chart;
pub mod compose;
pub mod dockerfile;
pub mod machine;
pub mod place;
pub mod units;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use machine::Machine;

/// What a file says of one container.
#[derive(Clone, Debug, Default)]
pub struct Container {
    /// By which the file names it.
    pub name: String,
    /// What it's made from.
    pub image: String,
    /// The program and its arguments, the image's entry point included.
    pub command: Vec<String>,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// Files that are mounted: where they lie inside, and what they hold.
    pub files: BTreeMap<String, String>,
    /// Folders that are mounted: where they lie inside, and the folder of the host (with a `/`) or the volume's name.
    pub mounts: BTreeMap<String, String>,
    /// How its health is asked for.
    pub health: Vec<Health>,
    /// The containers that come before it, healthy or, if they end by themselves, ended in order.
    pub after: Vec<String>,
    /// Whether nothing but what is mounted can be written.
    pub read_only: bool,
    /// The rights of root that it is given, such as `DAC_READ_SEARCH`.
    pub rights: Vec<String>,
}

/// A check of health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// A command inside the container, which ends with 0.
    Command(Vec<String>),
    /// The standard gRPC health service: what it says of a service, or of the whole.
    Grpc(u16, String),
    /// A GET that is answered with success.
    Http(u16, String),
    /// A port that is open.
    Tcp(u16),
}

/// Where a name of the containers' network leads to.
#[derive(Clone, Debug)]
pub struct Alias {
    /// The container.
    pub container: String,
    /// Its ports by those that others call; one that isn't here is the same.
    pub ports: BTreeMap<u16, u16>,
}

/// A file or folder of `deploy/`.
pub fn deploy(name: &str) -> PathBuf {
    root().join("deploy").join(name)
}

/// The project's root.
pub fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.canonicalize().expect("the project's root is there")
}

/// A program that `./dev tools` installed, else the one on the path.
pub fn tool(name: &str) -> PathBuf {
    let places = [".tools/bin", ".tools/venv/bin"].map(|folder| root().join(folder).join(name));
    places.into_iter().find(|path| path.exists()).unwrap_or_else(|| PathBuf::from(name))
}

/// A text of the file; none is the empty one.
pub(crate) fn text(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// The texts of a list; none is an empty one.
pub(crate) fn texts(value: &serde_json::Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(text).collect()
}
