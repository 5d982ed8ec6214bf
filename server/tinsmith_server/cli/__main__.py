from tinsmith_server.cli.main import main

main()
