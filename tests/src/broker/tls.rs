//! A private certificate authority and a certificate for localhost, as a site with its own CA has them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::end;

const CONFIG: &str = "\
[req]
distinguished_name = subject
prompt = no
[subject]
CN = lenspool test
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
[server]
basicConstraints = critical, CA:FALSE
subjectAltName = DNS:localhost, IP:127.0.0.1
extendedKeyUsage = serverAuth
";

/// PEM files.
#[derive(Debug)]
pub(super) struct Certificates {
    pub(super) ca: PathBuf,
    pub(super) server: PathBuf,
    pub(super) server_key: PathBuf,
}

impl Certificates {
    /// Makes them in `dir`.
    pub(super) fn make(dir: &Path) -> Self {
        let file = |name: &str| dir.join(name);
        fs_err::write(file("openssl.cnf"), CONFIG).expect("a sandbox can be written");
        certificate(dir, "ca", &[]);
        certificate(dir, "server", &["-subj", "/CN=localhost", "-CA", "ca.pem", "-CAkey", "ca.key"]);
        Certificates { ca: file("ca.pem"), server: file("server.pem"), server_key: file("server.key") }
    }
}

/// `NAME.pem` and `NAME.key`, with the extensions of section NAME.
fn certificate(dir: &Path, name: &str, args: &[&str]) {
    let mut command = Command::new("openssl");
    command
        .current_dir(dir)
        .args(["req", "-x509", "-config", "openssl.cnf", "-days", "2", "-nodes", "-extensions", name])
        .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")])
        .args(args);
    end(command).expect(0);
}
