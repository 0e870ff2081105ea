"""`veeryd`: builds this node's parts once, and runs them until it is told to stop.

    main      the command
    daemon    a daemon's life: take the ports, run the tasks, end in good order
    tasks     what a daemon runs
    base, domains, volumes, store, safety, brain
              the parts, in the order in which they are built; each hands its own to those after it
    doctor, routes
              what `veery doctor` looks at; the API's routes

Everything that has a state is made here and handed down; nothing below makes its own. Domains, etcd and tgtd are
processes of their own. They do not end with the daemon."""
