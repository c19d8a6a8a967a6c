//! What the client's program writes: the right epoch, whichever clock the kernel offers.

use headstart_ebpf::client::ClientTag;
use headstart_ebpf::option::FunctionOption;

const SECOND: u64 = 1_000_000_000;
const TAG: ClientTag = ClientTag { key: [1, 2], function: 7, number: 3 };

#[test]
fn the_epoch_is_that_of_the_clock_and_its_offset() {
    for (boot, offset, unix_seconds) in [
        (0, 0, 0),
        (100 * SECOND, 1_790_000_000 * SECOND, 1_790_000_100),
        (29 * SECOND, SECOND - 1, 29),
        (29 * SECOND, SECOND, 30),
        // A machine whose clock was set to before it was switched on.
        (100 * SECOND, (40 * SECOND).wrapping_neg(), 60),
    ] {
        let expected = FunctionOption::tagged(TAG.key, 3, unix_seconds / 30, 7, 8081, 9);
        assert_eq!(TAG.option(boot, offset, 8081, 9), expected, "{boot} + {offset}");
    }
}

#[test]
fn without_a_key_nothing_is_proved() {
    let open = ClientTag { number: 0, ..TAG };
    assert_eq!(open.option(SECOND, SECOND, 8081, 9), FunctionOption::open(7));
}
