from tinsmith_worker.main import main

raise SystemExit(main())
