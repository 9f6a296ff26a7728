//! How a command ends: 0 done; 1 found wanting (not found, refused, gaps, not ready); 64 usage or a bad file; 69 server
//! not reachable; 70 a fault of logmesh.

use std::error::Error as _;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use tonic::{Code, Status};

use super::output::{Output, escape_lines};

/// What a command gives back.
pub(super) type Outcome = Result<(), Failure>;

/// How a process ends. The numbers are part of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Done = 0,
    /// Found wanting: not found, refused, gaps, not ready.
    Wanting = 1,
    /// The command line or a file is wrong.
    Usage = 64,
    /// A server can't be reached.
    Unreachable = 69,
    /// A fault of logmesh.
    Internal = 70,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command didn't do what it was asked for.
#[derive(Debug)]
pub(super) enum Failure {
    /// Something is wanting, and was shown already.
    Wanting,
    /// The command or a file is wrong.
    Usage(String),
    /// The connection ended.
    Gone(String),
    /// The server can't be understood.
    Garbled(String),
    /// The server said no, or couldn't be asked.
    Call(Status),
    /// The output can't be written.
    Output(io::Error),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Call(status)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl Failure {
    /// The exit code, and the text for stderr if there is anything to say.
    fn explain(&self, server: &str) -> (Exit, Option<String>) {
        match self {
            Self::Wanting => (Exit::Wanting, None),
            Self::Usage(text) => (Exit::Usage, Some(text.clone())),
            Self::Gone(text) => (Exit::Unreachable, Some(text.clone())),
            Self::Garbled(text) => (Exit::Internal, Some(format!("the server's answer can't be understood: {text}"))),
            Self::Call(status) => {
                let (code, text) = explain_status(status, server);
                (code, Some(text))
            }
            // `logmesh search … | head`: the reader has enough.
            Self::Output(error) if error.kind() == ErrorKind::BrokenPipe => (Exit::Done, None),
            Self::Output(error) => (Exit::Internal, Some(format!("cannot write the output: {error}"))),
        }
    }
}

fn explain_status(status: &Status, server: &str) -> (Exit, String) {
    let said = logmesh_grpc::describe(status);
    let transport = status.source().is_some_and(|source| source.is::<tonic::transport::Error>());
    // What a server says has no source: such an error came of the connection.
    let broken = status.source().is_some();
    match status.code() {
        _ if transport => (Exit::Unreachable, unreachable(status, server)),
        Code::Internal | Code::Unknown if broken => (
            Exit::Unreachable,
            format!(
                "the connection to {server} broke off ({}); has the server ended?",
                logmesh_grpc::innermost(status)
            ),
        ),
        Code::Unavailable => (Exit::Unreachable, format!("the server at {server} can't do it now: {said}")),
        Code::DeadlineExceeded | Code::Cancelled => {
            (Exit::Unreachable, format!("the server at {server} gave no answer in time: {said}"))
        }
        Code::Unimplemented => (Exit::Internal, format!("the server at {server} doesn't offer this: {said}")),
        Code::Internal | Code::Unknown | Code::DataLoss => {
            (Exit::Internal, format!("the server at {server} failed: {said}"))
        }
        _ => (Exit::Wanting, said),
    }
}

fn unreachable(status: &Status, server: &str) -> String {
    let cause = logmesh_grpc::innermost(status);
    format!("no server can be reached at {server} ({cause}); is it running? --server or LOGMESH_SERVER names another")
}

/// Says on stderr what went wrong and gives the exit code.
pub(super) fn finish(result: Outcome, server: &str, raw: bool) -> ExitCode {
    let Err(failure) = result else {
        return ExitCode::SUCCESS;
    };
    let (exit, text) = failure.explain(server);
    if let Some(text) = text {
        note(&format!("logmesh: {text}"), raw);
    }
    exit.into()
}

/// Says on stderr why the process ends, and gives the exit code.
pub(crate) fn fail(exit: Exit, text: &str) -> ExitCode {
    note(&format!("logmesh: {text}"), false);
    exit.into()
}

/// Prints a text that was asked for, such as `--print-config`.
pub(crate) fn print(text: &str) -> ExitCode {
    let mut out = Output::stdout(false, false);
    let printed = out.lines(text).map_err(Failure::from).and_then(|()| out.flush());
    finish(printed, "", false)
}

/// Writes bytes that were asked for to stdout, as they are.
pub(crate) fn write(bytes: &[u8]) -> ExitCode {
    let mut out = io::stdout().lock();
    finish(out.write_all(bytes).and_then(|()| out.flush()).map_err(Failure::from), "", false)
}

/// Says something on stderr; where that is closed, nobody wants to know.
pub(super) fn note(text: &str, raw: bool) {
    let text = if raw { text.into() } else { escape_lines(text) };
    drop(writeln!(io::stderr(), "{text}"));
}

/// Ends as clap wants to, with 64 where the command line is wrong; `--help` and `--version` are 0.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    drop(error.print());
    if error.use_stderr() { Exit::Usage.into() } else { ExitCode::SUCCESS }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(failure: Failure) -> Exit {
        failure.explain("here:1").0
    }

    #[test]
    fn exit_codes_are_those_of_the_contract() {
        assert_eq!(code(Failure::Wanting), Exit::Wanting);
        assert_eq!(code(Failure::Usage("x".into())), Exit::Usage);
        for refused in [Code::NotFound, Code::InvalidArgument, Code::Aborted, Code::PermissionDenied] {
            assert_eq!(code(Status::new(refused, "no").into()), Exit::Wanting, "{refused:?}");
        }
        assert_eq!(code(Status::unavailable("starting").into()), Exit::Unreachable);
        assert_eq!(code(Status::deadline_exceeded("slow").into()), Exit::Unreachable);
        assert_eq!(code(Status::internal("bug").into()), Exit::Internal);
        let broken = Status::from_error(Box::new(io::Error::from(ErrorKind::ConnectionReset)));
        assert_eq!(code(broken.into()), Exit::Unreachable);
        assert_eq!(code(io::Error::other("disk full").into()), Exit::Internal);
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        assert_eq!(Failure::from(io::Error::from(ErrorKind::BrokenPipe)).explain("here:1"), (Exit::Done, None));
    }
}
