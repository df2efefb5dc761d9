/// The command `qemu-nbd`: this program under that name. Same options, same exit codes, our own words; docs/serve.md has a table of what
/// differs.
enum QEMUNBDPersonality {
    static let program = "qemu-nbd"

    /// - Parameter arguments: Without the name of the program.
    /// - Returns: The exit code.
    static func run(_ arguments: [String]) async -> Int32 {
        do throws(ToolError) {
            switch try QEMUNBDInvocation(arguments) {
            case .help: HostProcess.write(Array(help.utf8), to: 1)
            case .version: HostProcess.write(Array("\(program) \(Version.current) (swift-nbd)\n".utf8), to: 1)
            case .traceNames: HostProcess.write(Array(TracePlan.names.utf8), to: 1)
            case .serve(let options): return await Serve.run(options)
            case .list(let address, let tls): HostProcess.write(Array(try await QEMUNBDList.text(of: address, tls: tls).utf8), to: 1)
            }
            return 0
        } catch {
            Serve.report(error.message, program: program)
            return 1
        }
    }

    static let help = """
        Usage: qemu-nbd [OPTIONS] FILE
          or:  qemu-nbd -L [OPTIONS]
        swift-nbd \(Version.current), called as qemu-nbd. `nbd serve --help` shows more.

          -h, --help                 show this text
          -V, --version              show the version

        Connections
          -p, --port=PORT            TCP port (default 10809)
          -b, --bind=HOST            address to listen on (default 0.0.0.0); repeatable
          -k, --socket=PATH          listen on a Unix socket instead; repeatable
          -e, --shared=NUM           clients at a time (default 1; 0: no limit)
          -t, --persistent           stay when the last client leaves
          -x, --export-name=NAME     name of the export (default: empty)
          -D, --description=TEXT     description for people
              --handshake-limit=N    seconds for the handshake (default 10; 0: no limit)

        Encryption
              --object=TYPE,id=ID,…  tls-creds-x509,id=ID,dir=DIR,endpoint=server or tls-creds-psk,…
              --tls-creds=ID         encrypt with the credentials of this object
              --tls-authz=ID         let in whom this object knows
              --tls-hostname=NAME    with --list: the name that the server's certificate must bear

        Image
          -f, --format=FORMAT        raw (default) or qcow2; nothing is probed
          -l, --load-snapshot=NAME   serve an internal snapshot, read-only: an id or a name, or
                                     snapshot.id=ID,snapshot.name=NAME
          -s, --snapshot             writes go to a temporary overlay and are gone at exit
              --allow-path=DIRECTORY backing and data files may also lie here, not only beside
                                     the image that names them; repeatable
              --probe-backing        find out the format of a backing file that the image does
                                     not tell
          -r, --read-only            clients may not write
          -A, --allocation-depth     tell clients which image of the chain holds what
          -B, --bitmap=NAME          tell clients of a dirty bitmap; repeatable
          -o, --offset=OFFSET        the export begins at this byte
          -n, --nocache              same as --cache=none
              --cache=MODE           none, writeback (default), writethrough, directsync, unsafe
              --aio=MODE             auto (default), threads, native, io_uring
              --discard=MODE         ignore (default), unmap
              --detect-zeroes=MODE   off (default), on, unmap
              --image-opts           FILE is driver=raw,file.driver=file,file.filename=PATH,…; or qcow2

        Other
          -L, --list                 list the exports of another server
          -T, --trace=PATTERN        trace events: [enable=]GLOB[,events=FILE][,file=PATH], or help
          -v, --verbose              log more; with --fork, keep standard error
              --fork                 go to the background when serving
              --pid-file=PATH        write the process id to a file when serving

        """
}
