//! Where OpenTelemetry spans go: OTLP over HTTP, by the standard's own environment (feature `otel`).
//!
//! `OTEL_EXPORTER_OTLP_ENDPOINT` (or `…_TRACES_ENDPOINT`) turns it on; `…_HEADERS`, `…_TIMEOUT`, `OTEL_SERVICE_NAME`,
//! `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER` and `OTEL_BSP_*` mean what the specification says.

use tracing_subscriber::{Layer, Registry};

type Sender = Box<dyn Layer<Registry> + Send + Sync>;

/// The exporter; [`Traces::finish`] sends the remaining spans.
pub struct Traces {
    #[cfg(feature = "otel")]
    provider: opentelemetry_sdk::trace::SdkTracerProvider,
}

fn is_wanted() -> bool {
    ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"]
        .iter()
        .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
}

#[cfg(feature = "otel")]
impl Traces {
    /// None without a setting for traces. It must be called outside of any runtime: the sender has a thread of its own.
    pub fn start() -> Result<Option<(Self, Sender)>, String> {
        use opentelemetry::trace::TracerProvider;
        use opentelemetry_otlp::{Protocol, WithExportConfig, WithHttpConfig};
        use tracing_subscriber::filter::{LevelFilter, Targets};

        if !is_wanted() {
            return Ok(None);
        }
        let refuse = |error: &dyn std::fmt::Display| format!("OTEL_EXPORTER_OTLP_ENDPOINT: {error}");
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let roots = rustls::RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.iter().map(rustls::pki_types::TrustAnchor::to_owned).collect(),
        };
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| refuse(&error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = reqwest::blocking::Client::builder()
            .tls_backend_preconfigured(tls)
            .build()
            .map_err(|error| refuse(&error))?;
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .build()
            .map_err(|error| refuse(&error))?;
        let resource = opentelemetry_sdk::Resource::builder();
        let resource = match std::env::var_os("OTEL_SERVICE_NAME") {
            Some(_) => resource,
            None => resource.with_service_name("kiro-server"),
        };
        let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build();
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("kiro-messages"))
            .with_location(false)
            .with_threads(false)
            .with_filter(Targets::new().with_target(kiro_messages::gateway::TRACE_TARGET, LevelFilter::INFO));
        Ok(Some((Self { provider }, layer.boxed())))
    }

    /// Sends the remaining spans.
    pub fn finish(self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}

#[cfg(not(feature = "otel"))]
impl Traces {
    /// Says so when traces are asked for that this build can't send.
    pub fn start() -> Result<Option<(Self, Sender)>, String> {
        if is_wanted() {
            return Err(
                "OTEL_EXPORTER_OTLP_ENDPOINT: this build sends no traces; build it with --features server,otel, \
                        or unset the variable"
                    .to_owned(),
            );
        }
        Ok(None)
    }

    pub fn finish(self) {}
}
