//! A request that is ready to be executed: all strings that the child needs, checked and in their final form.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::Path;

use kiln_wire::{ErrorCode, ExecRequest, Fault, Text};

use super::users::{self, User};

/// The search path if the command's environment has no PATH; the C library's default.
const PATH_FALLBACK: &[u8] = b"/usr/local/bin:/bin:/usr/bin";
/// PATH of commands in a guest.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// TERM of a terminal if the request has none.
const TERM_DEFAULT: &str = "xterm-256color";

/// Defaults of every command.
#[derive(Debug, Clone)]
pub struct Defaults {
    path: Vec<u8>,
    user: User,
}

impl Defaults {
    /// The defaults of PID 1, or of a service, which keeps its own PATH. `home` replaces the home of the agent's user.
    pub fn new(pid_1: bool, home: Option<&Path>) -> Self {
        let own = if pid_1 { None } else { std::env::var_os("PATH") };
        let path = own.map_or_else(|| PATH_DEFAULT.into(), std::os::unix::ffi::OsStringExt::into_vec);
        let mut user = users::own();
        if let Some(home) = home {
            user.home = home.to_string_lossy().into_owned();
        }
        Self { path, user }
    }
}

/// The working directory of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Directory {
    /// The requested one. If it can't be entered, the command doesn't start.
    Requested(CString),
    /// The user's home, or `/` if the home can't be entered.
    Home(CString),
}

/// A command that is ready to be executed.
#[derive(Debug)]
pub struct Command {
    /// Arguments, the program's name first.
    pub argv: Vec<CString>,
    /// `NAME=value`.
    pub env: Vec<CString>,
    /// Paths to try, in order.
    pub candidates: Vec<CString>,
    /// Working directory.
    pub directory: Directory,
    /// The user that it runs as, if that is not the agent's own.
    pub user: Option<User>,
}

impl Command {
    /// Checks a request.
    ///
    /// # Errors
    /// If the request can't be executed: it has no program, a zero byte in a string, or an unknown user.
    pub fn new(defaults: &Defaults, request: &ExecRequest) -> Result<Self, Fault> {
        let program = match request.argv.first() {
            Some(program) if !program.is_empty() => program,
            _ => return Err(Fault::new(ErrorCode::InvalidRequest, "`argv` has no program")),
        };
        let user = request.user.as_deref().map(users::find).transpose()?;
        let env = environment(defaults, user.as_ref().unwrap_or(&defaults.user), request)?;
        let candidates = candidates(program.as_bytes(), env.get(&b"PATH"[..]).map(Vec::as_slice))?;
        let home = || user.as_ref().unwrap_or(&defaults.user).home.as_bytes().to_vec();
        let directory = match &request.cwd {
            Some(cwd) if cwd.is_empty() => {
                return Err(Fault::new(ErrorCode::InvalidRequest, "`cwd` is empty"));
            }
            Some(cwd) => Directory::Requested(c_string("cwd", cwd.as_bytes().to_vec())?),
            None => Directory::Home(c_string("the user's home", home())?),
        };
        Ok(Self {
            argv: request
                .argv
                .iter()
                .map(|word| c_string("argv", word.as_bytes().to_vec()))
                .collect::<Result<_, _>>()?,
            env: env
                .into_iter()
                .map(|(name, value)| c_string("env", [name.as_slice(), b"=", &value].concat()))
                .collect::<Result<_, _>>()?,
            candidates,
            directory,
            user: user.filter(|user| !is_own(user)),
        })
    }
}

fn is_own(user: &User) -> bool {
    let own = rustix::process::geteuid().as_raw();
    own != 0 && user.uid == own && user.gid == rustix::process::getegid().as_raw()
}

type Environment = BTreeMap<Vec<u8>, Vec<u8>>;

fn environment(defaults: &Defaults, user: &User, request: &ExecRequest) -> Result<Environment, Fault> {
    let mut env = Environment::new();
    let mut set = |name: &str, value: &[u8]| drop(env.insert(name.into(), value.into()));
    if !request.env_clear {
        set("PATH", &defaults.path);
        set("HOME", user.home.as_bytes());
        set("SHELL", user.shell.as_bytes());
        set("TERM", b"linux");
        if !user.name.is_empty() {
            set("USER", user.name.as_bytes());
            set("LOGNAME", user.name.as_bytes());
        }
    }
    if let Some(tty) = &request.tty {
        set("TERM", if tty.term.is_empty() { TERM_DEFAULT } else { &tty.term }.as_bytes());
    }
    for (name, value) in &request.env {
        if name.is_empty() || name.as_bytes().contains(&b'=') {
            let message = format!("`{name}` is not a name of a variable");
            return Err(Fault::new(ErrorCode::InvalidRequest, message));
        }
        env.insert(name.as_bytes().into(), value.as_bytes().into());
    }
    Ok(env)
}

/// The paths at which the program may be: `program` if it contains a slash, or else one path for each directory of
/// PATH.
fn candidates(program: &[u8], path: Option<&[u8]>) -> Result<Vec<CString>, Fault> {
    const CANDIDATES_MAX: usize = 256;
    if program.contains(&b'/') {
        return Ok(vec![c_string("argv", program.to_vec())?]);
    }
    let join = |directory: &[u8]| match directory {
        // An empty part of PATH is the working directory.
        b"" => [b"./", program].concat(),
        _ if directory.ends_with(b"/") => [directory, program].concat(),
        _ => [directory, b"/", program].concat(),
    };
    path.unwrap_or(PATH_FALLBACK)
        .split(|byte| *byte == b':')
        .take(CANDIDATES_MAX)
        .map(|directory| c_string("argv", join(directory)))
        .collect()
}

fn c_string(what: &str, bytes: Vec<u8>) -> Result<CString, Fault> {
    CString::new(bytes).map_err(|error| {
        let message = format!("`{what}` contains a zero byte: {}", Text::from(error.into_vec()));
        Fault::new(ErrorCode::InvalidRequest, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(argv: &[&str]) -> ExecRequest {
        ExecRequest { argv: argv.iter().map(|word| Text::from(*word)).collect(), ..ExecRequest::default() }
    }

    fn env_of(command: &Command, name: &str) -> Option<String> {
        let prefix = format!("{name}=");
        command.env.iter().find_map(|entry| entry.to_str().ok()?.strip_prefix(&prefix).map(str::to_owned))
    }

    #[test]
    fn the_last_variable_with_a_name_replaces_the_default() {
        let mut request = request(&["true"]);
        request.env = vec![("HOME".into(), "/a".into()), ("HOME".into(), "/b".into())];
        let command = Command::new(&Defaults::new(true, None), &request).expect("a plain command");
        assert_eq!(env_of(&command, "HOME").as_deref(), Some("/b"));
        assert_eq!(env_of(&command, "PATH").as_deref(), Some(PATH_DEFAULT));
    }

    #[test]
    fn a_program_is_searched_in_the_path_of_the_command() {
        let mut request = request(&["prog"]);
        request.env_clear = true;
        request.env = vec![("PATH".into(), "/a:/b/::rel".into())];
        let command = Command::new(&Defaults::new(true, None), &request).expect("a plain command");
        assert_eq!(command.env.len(), 1);
        let found: Vec<_> = command.candidates.iter().filter_map(|path| path.to_str().ok()).collect();
        assert_eq!(found, ["/a/prog", "/b/prog", "./prog", "rel/prog"]);
    }

    #[test]
    fn a_program_with_a_slash_is_not_searched() {
        let command = Command::new(&Defaults::new(true, None), &request(&["./x/y"])).expect("a plain command");
        assert_eq!(command.candidates, [c"./x/y".to_owned()]);
    }

    #[test]
    fn an_invalid_request_is_refused_by_name() {
        let refused = |change: fn(&mut ExecRequest)| {
            let mut request = request(&["true"]);
            change(&mut request);
            Command::new(&Defaults::new(true, None), &request).expect_err("refused").to_string()
        };
        let refusals = [
            refused(|request| request.argv = vec![]),
            refused(|request| request.argv = vec!["".into()]),
            refused(|request| request.argv.push("a\0b".into())),
            refused(|request| request.env = vec![("A=B".into(), "c".into())]),
            refused(|request| request.env = vec![("A".into(), "b\0c".into())]),
            refused(|request| request.cwd = Some("".into())),
            refused(|request| request.user = Some("a:b:c".into())),
            refused(|request| request.user = Some("no-such-user".into())),
            refused(|request| request.user = Some("0:no-such-group".into())),
        ];
        insta::assert_snapshot!(refusals.join("\n").replace('\0', "\\0"));
    }
}
