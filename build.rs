//! Sets the linker flags of the Node.js addon on the platforms that need them.

fn main() {
    napi_build::setup();
}
