//! The server's certificate: read at the start, and again on request (`SIGHUP`).

use std::io;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::socket::ClientSocket;
use crate::config::TlsFiles;
use crate::error::{Code, Error};

/// TLS 1.2 and 1.3, HTTP/1.1.
pub struct Tls {
    files: TlsFiles,
    config: ArcSwap<ServerConfig>,
}

impl Tls {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// [`Code::Config`]: a file can't be read, or the two don't fit each other. Names the setting and the file.
    pub fn load(files: &TlsFiles) -> Result<Self, Error> {
        Ok(Self { files: files.clone(), config: ArcSwap::from(read(files)?) })
    }

    /// Reads both files again. Open connections keep their certificate.
    ///
    /// # Errors
    /// As [`Tls::load`]; the old certificate stays in use.
    pub fn reload(&self) -> Result<(), Error> {
        self.config.store(read(&self.files)?);
        Ok(())
    }

    pub(super) async fn accept(&self, socket: ClientSocket) -> io::Result<TlsStream<ClientSocket>> {
        TlsAcceptor::from(self.config.load_full()).accept(socket).await
    }
}

fn read(files: &TlsFiles) -> Result<Arc<ServerConfig>, Error> {
    let refuse = |setting: &str, file: &Path, why: String| {
        Error::new(Code::Config, format!("{setting}: {}: {why}", file.display()))
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&files.cert).and_then(Iterator::collect);
    let chain = chain.map_err(|e| refuse("KIRO_TLS_CERT", &files.cert, e.to_string()))?;
    if chain.is_empty() {
        return Err(refuse("KIRO_TLS_CERT", &files.cert, "holds no certificate in PEM form".to_owned()));
    }
    // The error names no content of the file.
    let key =
        PrivateKeyDer::from_pem_file(&files.key).map_err(|e| refuse("KIRO_TLS_KEY", &files.key, e.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::new(Code::Internal, format!("TLS: {e}")))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|e| refuse("KIRO_TLS_KEY", &files.key, format!("doesn't fit {}: {e}", files.cert.display())))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
