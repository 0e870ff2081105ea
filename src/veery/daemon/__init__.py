"""`veeryd`: builds the parts of this node once, and runs them until it is stopped.

    main      the command
    daemon    the life of a daemon: take the ports, run the tasks, end in good order
    tasks     the tasks of a daemon
    base, domains, volumes, store, safety, brain
              the parts, in the order in which they are built; each is passed to those after it
    doctor, routes
              the checks of `veery doctor`; the routes of the API

Everything with state is made here and passed down; no lower layer makes its own. Domains, etcd and tgtd are processes
of their own. They do not end with the daemon."""
