//! A stand-in for the hub: a few hundred bytes of HTTP on a port of this machine.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use sha2::{Digest, Sha256};

/// How the hub treats one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// As it should.
    Serve,
    /// Large files carry the SHA-256 of their content as tag; this one is announced with that of other content.
    WrongDigest,
    /// The connection breaks after half of the body, this many times.
    BreakOff(usize),
    /// The answer to the GET, after a good HEAD, is an error page.
    ErrorPage,
    /// Sends the client to this hub, as the real one does for large files.
    Elsewhere(String),
    /// Sends the client to another file of this hub, as the real one does for small files.
    Moved(&'static str),
    /// No answer at all.
    Silence,
    /// Half of the body, and then nothing.
    Stall,
    /// This status, X-Error-Code and X-Error-Message.
    Refuse(u16, &'static str, &'static str),
}

#[derive(Debug)]
struct State {
    files: BTreeMap<String, (Vec<u8>, Manner)>,
    /// Method, path and Authorization of every request.
    requests: Vec<(String, String, Option<String>)>,
    /// The repo asks for a token.
    token: Option<&'static str>,
}

/// A hub with one repo, `org/tiny`, whose `main` and `v1` are one commit.
#[derive(Clone, Debug)]
pub(super) struct TestHub {
    pub(super) endpoint: String,
    state: Arc<Mutex<State>>,
}

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

impl TestHub {
    pub(super) fn start() -> TestHub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = State { files: BTreeMap::new(), requests: Vec::new(), token: None };
        let hub = TestHub { endpoint, state: Arc::new(Mutex::new(state)) };
        let server = hub.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = server.clone();
                thread::spawn(move || server.answer(stream));
            }
        });
        hub
    }

    pub(super) fn put(&self, file: &str, content: &[u8]) {
        self.put_so(file, content, Manner::Serve);
    }

    pub(super) fn put_so(&self, file: &str, content: &[u8], manner: Manner) {
        self.state.lock().unwrap().files.insert(file.to_owned(), (content.to_vec(), manner));
    }

    pub(super) fn require_token(&self, token: &'static str) {
        self.state.lock().unwrap().token = Some(token);
    }

    /// "GET file" and "HEAD file" so far, in order.
    pub(super) fn requests(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        state.requests.iter().map(|(method, path, _)| format!("{method} {}", name(path))).collect()
    }

    /// The Authorization headers so far.
    pub(super) fn authorizations(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.iter().filter_map(|(.., header)| header.clone()).collect()
    }

    fn answer(&self, mut stream: TcpStream) {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
        let Some(request) = lines.next() else { return };
        let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let authorization = headers.iter().find_map(|header| {
            let (name, value) = header.split_once(':')?;
            name.eq_ignore_ascii_case("authorization").then(|| value.trim().to_owned())
        });
        let (response, hold): (Vec<u8>, bool) = {
            let mut state = self.state.lock().unwrap();
            state.requests.push((method.to_owned(), path.to_owned(), authorization.clone()));
            respond(&mut state, method, path, authorization.as_deref())
        };
        let _ = stream.write_all(&response);
        if hold {
            thread::sleep(Duration::from_secs(20));
        }
    }
}

fn respond(state: &mut State, method: &str, path: &str, authorization: Option<&str>) -> (Vec<u8>, bool) {
    let refuse = |status: u16, code: &str, message: &str| {
        let head = format!(
            "HTTP/1.1 {status} No\r\nX-Error-Code: {code}\r\nX-Error-Message: {message}\r\nContent-Length: 0\r\n\
             Connection: close\r\n\r\n"
        );
        (head.into_bytes(), false)
    };
    let path = path.split('?').next().unwrap_or_default();
    let Some(rest) = path.trim_start_matches("/api/models").strip_prefix("/org/tiny/") else {
        return refuse(404, "RepoNotFound", "Repository not found");
    };
    if state.token.is_some_and(|token| authorization != Some(&format!("Bearer {token}"))) {
        return refuse(401, "GatedRepo", "Access to model org/tiny is restricted");
    }
    let mut parts = rest.splitn(3, '/');
    let (verb, revision, file) = (parts.next(), parts.next().unwrap_or_default(), parts.next());
    if !["main", "v1", COMMIT].contains(&revision) {
        return refuse(404, "RevisionNotFound", "Invalid rev id");
    }
    if verb == Some("revision") {
        let names: Vec<String> =
            state.files.keys().map(|name| format!("{{\"rfilename\":\"{name}\"}}")).collect();
        let body = format!(
            "{{\"_id\":\"1\",\"id\":\"org/tiny\",\"sha\":\"{COMMIT}\",\"siblings\":[{}]}}",
            names.join(",")
        );
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        return (format!("{head}{body}").into_bytes(), false);
    }
    let Some((content, manner)) = file.and_then(|file| state.files.get_mut(file)) else {
        return refuse(404, "EntryNotFound", "Entry not found");
    };
    let digest: String = Sha256::digest(&*content).iter().map(|byte| format!("{byte:02x}")).collect();
    let etag = match manner {
        Manner::WrongDigest => "f".repeat(64),
        _ if file.is_some_and(|file| file.ends_with(".safetensors")) => digest,
        _ => digest[..40].to_owned(),
    };
    let mut body = content.clone();
    let length = body.len();
    match manner {
        Manner::Serve | Manner::WrongDigest => {}
        Manner::Silence => return (Vec::new(), true),
        Manner::Elsewhere(endpoint) => {
            let head = format!(
                "HTTP/1.1 302 Found\r\nLocation: {endpoint}/org/tiny/{rest}\r\nX-Repo-Commit: {COMMIT}\r\n\
                 X-Linked-ETag: \"{etag}\"\r\nX-Linked-Size: {length}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            return (head.into_bytes(), false);
        }
        Manner::Moved(to) => {
            let head = format!(
                "HTTP/1.1 307 Temporary Redirect\r\nLocation: /org/tiny/resolve/{revision}/{to}\r\n\
                 Content-Length: 0\r\nConnection: close\r\n\r\n"
            );
            return (head.into_bytes(), false);
        }
        Manner::Stall => body.truncate(length / 2),
        Manner::Refuse(status, code, message) => return refuse(*status, code, message),
        Manner::ErrorPage if method == "GET" => {
            return refuse(500, "", "the store is down");
        }
        Manner::ErrorPage => {}
        Manner::BreakOff(times) => {
            if method == "GET" && *times > 0 {
                *times -= 1;
                body.truncate(length / 2);
            }
        }
    }
    let stalls = *manner == Manner::Stall && method == "GET";
    let head = format!(
        "HTTP/1.1 200 OK\r\nETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    );
    let mut response = head.into_bytes();
    if method == "GET" {
        response.extend(body);
    }
    (response, stalls)
}
