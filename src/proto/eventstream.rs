//! AWS event-stream frames: a bounded decoder and the encoder of the simulator.
