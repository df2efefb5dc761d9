@main struct NBD { static func main() {} }
