//! Ways out by sockets.

use sandbox::Sandbox;
use std::io::ErrorKind;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use crate::support::assert_all_blocked;

crate::on_both_backends!(no_socket_reaches_the_host);

const ATTACK: &str = r#"
tcp, udp, name, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
attempt("tcp", lambda: socket.create_connection(("127.0.0.1", tcp), 2))
attempt("tcp6", lambda: socket.socket(socket.AF_INET6).connect(("::1", tcp)))
attempt("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", udp)))
attempt("outside", lambda: socket.create_connection(("1.1.1.1", 53), 2))
attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt("ping", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1))
attempt("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
attempt("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
attempt("vsock", lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))
attempt("crypto", lambda: socket.socket(38, socket.SOCK_SEQPACKET))
attempt("abstract", lambda: socket.socket(socket.AF_UNIX).connect("\0" + name))
attempt("path", lambda: socket.socket(socket.AF_UNIX).connect(path))
attempt("dns", lambda: socket.getaddrinfo("example.com", 80))
print("finished")
"#;

fn no_socket_reaches_the_host(sandbox: &Sandbox) {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(dir.path(), 0o755);
    let path = dir.path().join("socket");
    let by_path = UnixListener::bind(&path).unwrap();
    open(&path, 0o777);
    let name = path.to_str().unwrap().replace('/', "-");
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let by_name = UnixListener::bind_addr(&address).unwrap();
    let port = |address: std::net::SocketAddr| address.port().to_string();
    assert_all_blocked(
        sandbox,
        ATTACK,
        &[
            &port(tcp.local_addr().unwrap()),
            &port(udp.local_addr().unwrap()),
            &name,
            path.to_str().unwrap(),
        ],
    );
    tcp.set_nonblocking(true).unwrap();
    udp.set_nonblocking(true).unwrap();
    by_path.set_nonblocking(true).unwrap();
    by_name.set_nonblocking(true).unwrap();
    let nothing = ErrorKind::WouldBlock;
    assert_eq!(tcp.accept().unwrap_err().kind(), nothing);
    assert_eq!(udp.recv_from(&mut [0; 8]).unwrap_err().kind(), nothing);
    assert_eq!(by_path.accept().unwrap_err().kind(), nothing);
    assert_eq!(by_name.accept().unwrap_err().kind(), nothing);
}
