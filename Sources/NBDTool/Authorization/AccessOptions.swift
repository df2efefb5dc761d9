import ArgumentParser

/// `nbd serve`: who may do what, and what the server itself may do.
struct AccessOptions: ParsableArguments {
    @Option(
        name: .long,
        help: ArgumentHelp(
            "[export=GLOB][,from=NETWORK|unix][,uid=N][,gid=N][,pid=N][,tls=on|off][,tls-dn=GLOB][,tls-user=GLOB],may=list+read+write+trim+contexts|all. Repeatable; with one, all else is denied.",
            valueName: "rule"))
    var allow: [String] = []

    @Option(name: .long, help: ArgumentHelp("Takes away what --allow gives; the same keys. Repeatable.", valueName: "rule"))
    var deny: [String] = []

    @Option(name: .long, help: ArgumentHelp("Become this user once all images are open and all addresses bound.", valueName: "user"))
    var user: String?

    @Option(name: .long, help: ArgumentHelp("Become this group (default: the user's).", valueName: "group"))
    var group: String?

    @Option(
        name: .long,
        help: ArgumentHelp("on: no file but those in use can be reached, where the kernel has Landlock; require; off. (default: on)", valueName: "mode"))
    var sandbox: String?
}
