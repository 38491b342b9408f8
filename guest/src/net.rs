//! The IP stack on the network device: ARP, ICMP echo and UDP by smoltcp, at CPL3.
//!
//! All buffers are static; another socket (TCP, say) needs a slot in [`Buffers::sockets`], its
//! buffers beside it and a feature of smoltcp.

use core::cell::UnsafeCell;
use core::net::Ipv4Addr;
use core::sync::atomic::{AtomicBool, Ordering};

use romulus_probe::params::VirtioMmio;
use romulus_probe::{Params, SERVICE_PORT};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet, SocketStorage};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::udp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr};

use crate::console::say;
use crate::cpu::PerCpu;
use crate::virtio::{
    FRAME_BYTES_MAX, ReceivedFrame, Receiver, Transmitter, VirtioError, VirtioNet,
};
use crate::{apic, clock};

const PACKETS_MAX: usize = 128;
const RECEIVE_BYTES: usize = 16 * 1024;
const TRANSMIT_BYTES: usize = 32 * 1024;

struct Buffers {
    sockets: [SocketStorage<'static>; 1],
    receive_meta: [udp::PacketMetadata; PACKETS_MAX],
    transmit_meta: [udp::PacketMetadata; PACKETS_MAX],
    receive: [u8; RECEIVE_BYTES],
    transmit: [u8; TRANSMIT_BYTES],
}

struct TakeOnce {
    is_taken: AtomicBool,
    buffers: UnsafeCell<Buffers>,
}

// SAFETY: handed out once, by `take`.
unsafe impl Sync for TakeOnce {}

static BUFFERS: TakeOnce = TakeOnce {
    is_taken: AtomicBool::new(false),
    buffers: UnsafeCell::new(Buffers {
        sockets: [SocketStorage::EMPTY; 1],
        receive_meta: [udp::PacketMetadata::EMPTY; PACKETS_MAX],
        transmit_meta: [udp::PacketMetadata::EMPTY; PACKETS_MAX],
        receive: [0; RECEIVE_BYTES],
        transmit: [0; TRANSMIT_BYTES],
    }),
};

impl TakeOnce {
    #[expect(clippy::mut_from_ref, reason = "handed out once, which the flag ensures")]
    fn take(&'static self) -> &'static mut Buffers {
        assert!(!self.is_taken.swap(true, Ordering::AcqRel), "one network only");
        // SAFETY: nobody took it before, and nobody will again.
        unsafe { &mut *self.buffers.get() }
    }
}

/// Counters for the stats answer.
#[derive(Clone, Copy, Default)]
pub(crate) struct NetCounters {
    pub(crate) rx_frames: u64,
    pub(crate) tx_frames: u64,
    pub(crate) tx_dropped: u64,
}

/// The guest's network.
pub(crate) struct Net {
    phy: Phy,
    interface: Interface,
    sockets: SocketSet<'static>,
    service: SocketHandle,
    interrupts_seen: u64,
    place: VirtioMmio,
    /// Counters of devices before the last [`Net::reopen`].
    earlier: NetCounters,
}

impl Net {
    /// The first network device of the command line, if there is one and it has an address.
    pub(crate) fn open(params: &Params) -> Option<Self> {
        let (address, prefix) = params.ip?;
        let Some((place, device)) = find_device(params) else {
            say!("net none: no usable virtio-mmio network device on the command line");
            return None;
        };
        let gsi = place.gsi;
        if !apic::route_gsi(gsi) {
            say!("net gsi={gsi} is beyond the IOAPIC: the timer stands in for its interrupts");
        }
        let mut phy = Phy { device };
        let mac = EthernetAddress(phy.device.mac);
        let mut interface = Interface::new(Config::new(mac.into()), &mut phy, now());
        interface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(address.into(), prefix));
        });
        if let Some(gateway) = params.gateway {
            add_gateway(&mut interface, gateway);
        }
        say!("net mac={mac} ip={address}/{prefix} gsi={gsi} port={SERVICE_PORT}");
        let buffers = BUFFERS.take();
        let mut sockets = SocketSet::new(&mut buffers.sockets[..]);
        let mut socket = udp::Socket::new(
            udp::PacketBuffer::new(&mut buffers.receive_meta[..], &mut buffers.receive[..]),
            udp::PacketBuffer::new(&mut buffers.transmit_meta[..], &mut buffers.transmit[..]),
        );
        socket.bind(SERVICE_PORT).expect("a new socket, a port that is not 0");
        let service = sockets.add(socket);
        let earlier = NetCounters::default();
        Some(Self { phy, interface, sockets, service, interrupts_seen: 0, place, earlier })
    }

    /// Where its device is.
    pub(crate) fn registers(&self) -> u64 {
        self.place.base
    }

    /// Brings the device up again, whatever was done to it. What was on its way is lost.
    pub(crate) fn reopen(&mut self) -> Result<(), VirtioError> {
        self.earlier = self.counters();
        self.phy.device = VirtioNet::open(self.place)?;
        Ok(())
    }

    /// Moves frames between device and sockets, then lets `serve` answer. True if anything moved.
    pub(crate) fn poll(&mut self, serve: impl FnOnce(&mut udp::Socket<'static>) -> bool) -> bool {
        let interrupts = PerCpu::of(0).devices();
        if interrupts != self.interrupts_seen {
            self.interrupts_seen = interrupts;
            self.phy.device.acknowledge_interrupt();
        }
        let before = self.counters();
        self.interface.poll(now(), &mut self.phy, &mut self.sockets);
        if serve(self.sockets.get_mut::<udp::Socket<'_>>(self.service)) {
            self.interface.poll(now(), &mut self.phy, &mut self.sockets);
        }
        self.phy.device.notify();
        let after = self.counters();
        (before.rx_frames, before.tx_frames) != (after.rx_frames, after.tx_frames)
    }

    pub(crate) fn counters(&self) -> NetCounters {
        let VirtioNet { receiver, transmitter, .. } = &self.phy.device;
        NetCounters {
            rx_frames: self.earlier.rx_frames + receiver.frames(),
            tx_frames: self.earlier.tx_frames + transmitter.frames(),
            tx_dropped: self.earlier.tx_dropped + transmitter.dropped(),
        }
    }
}

fn now() -> Instant {
    Instant::from_micros((clock::now_ns(0) / 1000) as i64)
}

fn add_gateway(interface: &mut Interface, gateway: Ipv4Addr) {
    interface.routes_mut().add_default_ipv4_route(gateway).expect("the first route has room");
}

fn find_device(params: &Params) -> Option<(VirtioMmio, VirtioNet)> {
    params.virtio_devices().find_map(|device| match VirtioNet::open(device) {
        Ok(net) => Some((device, net)),
        Err(VirtioError::NotNetwork) => None,
        Err(error) => {
            say!("net device at {:#x} is not usable: {error:?}", device.base);
            None
        }
    })
}

/// The device as smoltcp wants it.
struct Phy {
    device: VirtioNet,
}

struct Received<'a> {
    receiver: &'a mut Receiver,
    frame: ReceivedFrame,
}

struct ToSend<'a>(&'a mut Transmitter);

impl Device for Phy {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = ToSend<'a>;

    /// Frames are taken in even when all transmit buffers are held: an answer that smoltcp makes
    /// on the spot (ARP, echo) is then dropped and counted.
    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, ToSend<'_>)> {
        let VirtioNet { receiver, transmitter, .. } = &mut self.device;
        let frame = receiver.next_frame()?;
        transmitter.has_room();
        Some((Received { receiver, frame }, ToSend(transmitter)))
    }

    /// What sockets have to send waits in them until there is room.
    fn transmit(&mut self, _now: Instant) -> Option<ToSend<'_>> {
        let transmitter = &mut self.device.transmitter;
        transmitter.has_room().then_some(ToSend(transmitter))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME_BYTES_MAX;
        capabilities
    }
}

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        let result = read(self.receiver.bytes(&self.frame));
        self.receiver.recycle(self.frame);
        result
    }
}

impl TxToken for ToSend<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        self.0.send(len, fill)
    }
}
