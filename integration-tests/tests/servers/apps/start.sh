# Both in one container, as their images do it: nginx listens when its backend does.
/usr/sbin/php-fpm8.2 -y DIR/fpm.conf &
until [ -S /tmp/fpm.sock ]; do sleep 0.02; done
exec /usr/sbin/nginx -c DIR/fpm-nginx.conf -e stderr
