//! What every process of logmesh shares: settings, telemetry, tasks with a name and an end, readiness, retries, and the
//! small HTTP server for operators.
//!
//! Nothing here knows a service, gRPC or a backend.

pub mod admin;
pub mod files;
pub mod listen;
pub mod readiness;
pub mod retry;
pub mod settings;
pub mod tasks;
pub mod telemetry;
pub mod tls;

pub use listen::{ListenError, check_exposure, is_local, listen, reachable};
pub use readiness::Readiness;
pub use retry::RetryPolicy;
pub use settings::SettingsError;
pub use tasks::Tasks;
pub use tls::Tls;
pub use tokio_util::sync::CancellationToken;
