//! What an image consists of.

use headstart_config::image::ImageRecord;
use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, Os};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::digest;
use crate::error::ImageError;

/// The largest manifest, index or configuration, in bytes. Registries refuse larger manifests.
pub(crate) const DOCUMENT_MAX: u64 = 4 * 1024 * 1024;

/// The most layers: no tool makes more.
pub(crate) const LAYERS_MAX: usize = 128;

/// The most bytes of all layers of an image: as they are sent, uncompressed, and of the files that they make.
pub(crate) const BYTES_MAX: u64 = 32 << 30;

/// The annotation of a layout with a tag (image specification, "Pre-Defined Annotation Keys").
const TAG: &str = "org.opencontainers.image.ref.name";

/// An image that is chosen, and of which the layers are still to come.
pub(crate) struct Found {
    /// The digest of its manifest.
    pub(crate) digest: String,
    /// Its configuration, with the digest that was asked for.
    pub(crate) config: Vec<u8>,
}

/// Where an image comes from.
pub(crate) trait Source {
    /// Finds manifest and configuration.
    fn find(&mut self) -> Result<Found, ImageError>;

    /// How many layers were found.
    fn layers(&self) -> usize;

    /// Writes a layer, as it is there, with the digest that was found for it.
    fn layer(&mut self, number: usize, into: &mut std::fs::File) -> Result<(), ImageError>;
}

/// A manifest, or a list of several.
pub(crate) enum Top {
    Manifest(Box<ImageManifest>),
    Index(Box<ImageIndex>),
}

/// Reads what a tag or a digest names.
pub(crate) fn top(bytes: &[u8]) -> Result<Top, ImageError> {
    #[derive(Deserialize)]
    struct Kind {
        manifests: Option<serde_json::Value>,
    }
    match document::<Kind>("manifest", bytes)?.manifests {
        Some(_) => document("index", bytes).map(Box::new).map(Top::Index),
        None => manifest(bytes).map(Box::new).map(Top::Manifest),
    }
}

pub(crate) fn manifest(bytes: &[u8]) -> Result<ImageManifest, ImageError> {
    let manifest: ImageManifest = document("manifest", bytes)?;
    if manifest.layers().len() > LAYERS_MAX {
        return Err(ImageError::TooLarge { what: "layers", limit: LAYERS_MAX as u64 });
    }
    // So much is fetched at most, whatever is sent.
    let bytes = manifest.layers().iter().try_fold(0_u64, |sum, layer| sum.checked_add(layer.size()));
    if bytes.is_none_or(|bytes| bytes > BYTES_MAX) {
        return Err(ImageError::TooLarge { what: "GiB of layers", limit: BYTES_MAX >> 30 });
    }
    Ok(manifest)
}

pub(crate) fn document<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, ImageError> {
    serde_json::from_slice(bytes)
        .map_err(|error| ImageError::Malformed { what: what.to_owned(), detail: error.to_string() })
}

/// The manifest of an index for this node.
pub(crate) fn choose<'i>(
    index: &'i ImageIndex,
    tag: Option<&str>,
    place: &str,
) -> Result<&'i Descriptor, ImageError> {
    let tag_of = |one: &Descriptor| one.annotations().as_ref().and_then(|all| all.get(TAG).cloned());
    let tagged = |one: &&Descriptor| tag.is_none() || tag_of(one).as_deref() == tag;
    let named: Vec<_> = index.manifests().iter().filter(tagged).collect();
    let has_platform = |one: &&&Descriptor| {
        let platform = one.platform().as_ref();
        platform.is_some_and(|p| *p.os() == Os::Linux && *p.architecture() == own_architecture())
    };
    let fits: Vec<_> = named.iter().filter(has_platform).copied().collect();
    let silent: Vec<_> = named.iter().filter(|one| one.platform().is_none()).copied().collect();
    let choice = if fits.is_empty() { silent } else { fits };
    match (&choice[..], tag) {
        ([only], _) => Ok(only),
        // As containerd does: the first of several variants.
        ([first, ..], Some(_)) => Ok(first),
        ([], _) if named.is_empty() => Err(ImageError::NotFound {
            registry: place.to_owned(),
            name: tag.unwrap_or("for any system").to_owned(),
        }),
        ([], _) => {
            let all = named.iter().filter_map(|one| one.platform().as_ref());
            let all: Vec<_> = all.map(|p| format!("{}/{}", p.os(), p.architecture())).collect();
            Err(ImageError::Platform { found: all.join(", "), own: own_platform() })
        }
        ([first, ..], None) => {
            let tags: Vec<_> = choice.iter().filter_map(|one| tag_of(one)).collect();
            if tags.is_empty() {
                return Ok(first);
            }
            let have = format!(" ({})", tags.join(", "));
            Err(ImageError::Several {
                place: place.to_owned(),
                have,
                hint: "name one by its tag, as in oci:DIR:TAG",
            })
        }
    }
}

fn own_architecture() -> Arch {
    Arch::default()
}

fn own_platform() -> String {
    format!("{}/{}", Os::Linux, own_architecture())
}

/// The image's configuration, if it is for this node: with the digests of its layers, and what it says of itself.
pub(crate) fn configuration(bytes: &[u8], layers: usize) -> Result<(Vec<String>, ImageRecord), ImageError> {
    let config: ImageConfiguration = document("configuration", bytes)?;
    if *config.os() != Os::Linux || *config.architecture() != own_architecture() {
        let found = format!("{}/{}", config.os(), config.architecture());
        return Err(ImageError::Platform { found, own: own_platform() });
    }
    let digests = config.rootfs().diff_ids().clone();
    if digests.len() != layers {
        let detail = format!("it names {} layers, and there are {layers}", digests.len());
        return Err(ImageError::Malformed { what: "configuration".to_owned(), detail });
    }
    let own = config.config().clone().unwrap_or_default();
    let words = |words: &Option<Vec<String>>| words.clone().unwrap_or_default();
    let port = |text: &String| match text.split_once('/') {
        None => text.parse().ok(),
        Some((port, "tcp")) => port.parse().ok(),
        Some(_) => None,
    };
    let mut ports: Vec<u16> = words(own.exposed_ports()).iter().filter_map(port).collect();
    ports.sort_unstable();
    ports.dedup();
    let record = ImageRecord {
        name: String::new(),
        digest: String::new(),
        id: digest::of(bytes).trim_start_matches("sha256:").to_owned(),
        command: [words(own.entrypoint()), words(own.cmd())].concat(),
        env: words(own.env()),
        user: own.user().clone().unwrap_or_default(),
        workdir: own.working_dir().clone().unwrap_or_default(),
        ports,
        stop_signal: own.stop_signal().clone().unwrap_or_default(),
        volumes: words(own.volumes()),
        bytes: 0,
        pulled: 0,
    };
    Ok((digests, record))
}
