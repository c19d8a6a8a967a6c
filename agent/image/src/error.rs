//! Why an image cannot be pulled or used, and what to do.

use std::io;
use std::path::PathBuf;

/// Why an image cannot be pulled or used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file or directory of this node.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// The disk is full.
    #[error(
        "no space is left for the image in {path}: free some (`headstart image gc`), or set `image_dir` in [agent]; \
         nothing was changed"
    )]
    NoSpace {
        /// The store.
        path: PathBuf,
    },
    /// What came has not the digest that was asked for.
    #[error(
        "{what} has the digest {found} and not {expected}: it was damaged or exchanged on its way; nothing was changed, \
         pull again"
    )]
    Digest {
        /// Which part of the image.
        what: String,
        /// Of the image.
        expected: String,
        /// Of what came.
        found: String,
    },
    /// It is for other machines.
    #[error("the image is for {found}, and this node is {own}: pull one that was built for {own}")]
    Platform {
        /// What it is for.
        found: String,
        /// This node.
        own: String,
    },
    /// A part of it cannot be understood.
    #[error("{what} is not one of an image: {detail}")]
    Malformed {
        /// Which part.
        what: String,
        /// What is wrong.
        detail: String,
    },
    /// It would need more than is allowed.
    #[error("the image has more than {limit} {what}: no more are unpacked")]
    TooLarge {
        /// What it has too much of.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
    /// A file in a layer that is not unpacked.
    #[error("layer {layer} cannot be unpacked: {name:?}: {detail}; nothing was changed")]
    Entry {
        /// Which layer, from 1 on.
        layer: usize,
        /// The file's name.
        name: String,
        /// Why not.
        detail: String,
    },
    /// Several images, and it is not said which.
    #[error("{place} has several images{have}: {hint}")]
    Several {
        /// Where.
        place: String,
        /// Which ones.
        have: String,
        /// What to do.
        hint: &'static str,
    },
    /// The registry wants to know who asks.
    #[error(
        "{registry} gives {name} only to those who log in{tried}: `docker login {registry}` (or podman login) as the user \
         that pulls, or correct the name"
    )]
    Login {
        /// Whose.
        registry: String,
        /// What was asked for.
        name: String,
        /// Whether there was a login.
        tried: String,
    },
    /// The registry has no such image.
    #[error("{registry} has no image {name}: correct the name")]
    NotFound {
        /// Whose.
        registry: String,
        /// What was asked for.
        name: String,
    },
    /// The registry does not answer, or not as a registry.
    #[error("{registry} cannot be asked: {detail}: try again when it can be reached")]
    Registry {
        /// Whose.
        registry: String,
        /// What happened.
        detail: String,
    },
    /// It took too long.
    #[error("{registry} did not send the image within {minutes} minutes: try again")]
    Late {
        /// Whose.
        registry: String,
        /// How long it was waited.
        minutes: u64,
    },
    /// The file with logins.
    #[error("{path}: {detail}")]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        detail: String,
    },
    /// The store has no such image.
    #[error("{name} is not in the store: `headstart image list` shows what is")]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// Other users could change the store.
    #[error("the store is not safe: {0}")]
    Unsafe(String),
}

/// Makes an error of a file of this node.
pub(crate) fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.into();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ImageError::NoSpace { path },
        _ => ImageError::File { path, source },
    }
}
