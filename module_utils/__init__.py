"""Knowledge shared by nodes and controller: pure Python 3.8, standard library only, no Ansible import."""
